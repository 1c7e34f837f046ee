"""Side by side in a real browser: two tiny checkpoints on one text, from one prompt, layer by layer; and Stop."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.checkpoint_factory import save
from tests.e2e.conftest import Server, idle, visit
from tests.run_factory import config, make_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"


def save_two(server: Server) -> str:
    """Two runs of one shape with a checkpoint each; returns the address that compares them."""
    for i, name in enumerate(("one", "two")):
        save(make_run(server.runs, name, step=200, config=config(seed=i)), 200 + i)
    return server.page("checkpoints?checkpoint=one@200&checkpoint=two@201")


def paste(page: Page, text: str) -> None:
    page.get_by_role("combobox", name="Text", exact=False).first.click()
    page.get_by_role("option", name="Pasted text").click()
    idle(page)
    box = page.get_by_role("textbox", name="Text to judge on")
    box.fill(text)
    box.press("Control+Enter")
    idle(page)


def test_two_checkpoints_side_by_side(server: Server, page: Page) -> None:
    visit(page, save_two(server))
    paste(page, TEXT * 60)
    page.get_by_role("button", name="Compare on the same text").click()
    card = page.locator(".st-key-ck_card_paired")
    expect(card.get_by_text("bootstrap draws")).to_be_visible(timeout=120_000)
    expect(card.locator(".js-plotly-plot")).to_be_visible()
    idle(page)

    coloured = page.locator(".st-key-ck_card_coloured")
    expect(coloured.get_by_text("1 of ")).to_be_visible()
    assert coloured.locator("span[title*='nats']").count() > 100
    coloured.get_by_role("button", name="Next").click()
    expect(coloured.get_by_text("2 of ")).to_be_visible()

    page.get_by_role("button", name="Write with both").click()
    for letter in "AB":
        wrote = page.locator(f".st-key-ck_card_text_{letter}")
        expect(wrote).to_contain_text(f"at the bar {letter} gave", timeout=120_000)
        expect(wrote).to_contain_text("nats/token")
    idle(page)

    weights = page.locator(".st-key-ck_card_weights")
    expect(weights.locator(".js-plotly-plot")).to_have_count(2)
    weights.get_by_text("Spectral norm", exact=True).first.click()
    idle(page)
    expect(weights.get_by_text("largest singular value")).to_be_visible()
    expect(card.get_by_text("bootstrap draws")).to_be_visible()  # all that was measured is still there


def test_stop_ends_a_comparison_and_keeps_nothing(server: Server, page: Page) -> None:
    visit(page, save_two(server))
    page.get_by_role("combobox", name="Tokens", exact=False).first.click()
    page.get_by_role("option", name="500k tokens").click()
    idle(page)
    page.get_by_role("button", name="Compare on the same text").click()
    card = page.locator(".st-key-ck_card_paired")
    card.get_by_role("button", name="Stop").click(timeout=60_000)  # the header has one too, of Streamlit's
    expect(card.get_by_text("Stopped before the end")).to_be_visible(timeout=60_000)
    idle(page)
    expect(card.get_by_role("button", name="Compare on the same text")).to_be_visible()
    expect(card.get_by_text("bootstrap draws")).to_have_count(0)
