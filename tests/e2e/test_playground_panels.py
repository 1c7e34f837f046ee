"""Beams and batches in a real browser: Stop ends both, keeps finished texts, and the tree is on the page."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.checkpoint_factory import save
from tests.e2e.conftest import Server, idle, visit
from tests.run_factory import make_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]


def fill(page: Page, label: str, value: str) -> None:
    box = page.get_by_label(label, exact=True)
    box.fill(value)
    box.press("Tab")
    idle(page)


def test_stop_keeps_finished_texts_and_the_tree_is_drawn(server: Server, page: Page) -> None:
    save(make_run(server.runs, "one", step=200), 200)
    visit(page, server.page("playground?look=Batch"))
    fill(page, "New tokens", "12")
    fill(page, "Batch size", "1")
    form = page.locator(".st-key-bt_card_form")
    fill(page, "Prompts, one a line", "It was\n" * 1000)
    form.get_by_role("button", name="Write all").click()
    expect(form.get_by_text(re.compile(r"[1-9]\d* of 1.000.texts done"))).to_be_visible(timeout=120_000)
    form.get_by_role("button", name="Stop").click()
    texts = page.locator(".st-key-bt_card_texts")
    expect(texts.get_by_text("the texts that were finished are kept")).to_be_visible()
    idle(page)
    expect(texts.get_by_test_id("stDataFrame")).to_be_visible()
    with page.expect_download() as saved:
        texts.get_by_role("button", name="JSON lines").click()
    assert 0 < len(saved.value.path().read_text(encoding="utf-8").splitlines()) < 1000

    page.get_by_role("radio", name="Beams").click()
    idle(page)
    page.locator(".st-key-bm_go button").click()
    tree = page.get_by_role("group", name="tree of the search")
    expect(tree).to_be_visible()
    assert tree.locator("span[title*='probability']").count() > 32
    assert tree.locator("img").evaluate("image => image.naturalWidth") > 0
