"""Evaluate in a real browser: a tiny checkpoint on a pasted text, what is drawn and kept; and Stop."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, expect

from dgsgpt.evaluation import kept
from tests.checkpoint_factory import save
from tests.e2e.conftest import Server, check_page, idle, open_page, visit
from tests.run_factory import make_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n"


def choose(page: Page, field: str, option: str) -> None:
    page.get_by_role("combobox", name=field).first.click()
    page.get_by_role("option", name=option).click()
    idle(page)


def paste(page: Page, text: str) -> None:
    choose(page, "Text", "Pasted text")
    box = page.get_by_role("textbox", name="Text to judge on")
    box.fill(text)
    box.press("Control+Enter")
    idle(page)


def evaluate(page: Page) -> None:
    page.get_by_role("button", name="Evaluate", exact=True).click()
    expect(page.locator(".st-key-ev_card_place .js-plotly-plot")).to_be_visible(timeout=120_000)
    idle(page)


def test_a_text_is_judged_shown_and_kept(server: Server, page: Page) -> None:
    run = make_run(server.runs, "one", step=200)
    for step in (100, 200):
        save(run, step)
    visit(page, server.page("evaluate?checkpoint=one@100"))
    expect(page).to_have_title("Evaluate")
    paste(page, TEXT * 40)
    expect(page.get_by_text("forward tokens")).to_be_visible()
    evaluate(page)
    for card in ("place", "frequency", "calibration"):
        expect(page.locator(f".st-key-ev_card_{card} .js-plotly-plot")).to_be_visible()
    expect(page.locator(".st-key-ev_card_hardest")).to_contain_text("bits/byte")
    table = page.locator(".st-key-ev_card_kept")
    expect(table).to_contain_text("pasted text")
    expect(table.get_by_text("this", exact=True)).to_have_count(1)

    choose(page, "Checkpoint", "one, step 200")
    expect(page).to_have_url(re.compile("checkpoint=one(@|%40)200$"))
    choose(page, "Stride", "8 (1/4)")
    evaluate(page)
    expect(table.get_by_text("one, step")).to_have_count(2)
    found, _ = kept.read(run)
    assert [(one.step, one.record["stride"]) for one in found] == [(100, 32), (200, 8)]
    page.reload()
    idle(page)
    expect(table.get_by_text("one, step")).to_have_count(2)


def test_stop_ends_an_evaluation_and_keeps_nothing(server: Server, page: Page) -> None:
    run = make_run(server.runs, "one", step=200)
    save(run, 200)
    visit(page, server.page("evaluate"))
    choose(page, "Stride", "1 (exact)")
    page.get_by_role("button", name="Evaluate", exact=True).click()
    card = page.locator(".st-key-ev_card_form")
    card.get_by_role("button", name="Stop").click(timeout=60_000)  # the header has one too, of Streamlit's
    expect(card.get_by_text("Stopped before the end")).to_be_visible(timeout=60_000)
    idle(page)
    expect(card.get_by_role("button", name="Evaluate", exact=True)).to_be_enabled()
    assert kept.read(run) == ([], 0)


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (900, "dark")])
def test_results_fit_the_page(server: Server, browser: Browser, width: int, scheme: str) -> None:
    save(make_run(server.runs, "one", step=200), 200)
    opened, watch = open_page(browser, width=width, scheme=scheme)
    visit(opened, server.page("evaluate"))
    paste(opened, TEXT * 40)
    evaluate(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    check_page(opened, watch)
    opened.context.close()
