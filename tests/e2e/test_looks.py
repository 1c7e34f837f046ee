"""Looking into a model in a real browser: a head is picked by its small map, hover tells, pasted text stays text."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from dgsgpt.config import build_config
from dgsgpt.runs import create_run
from tests.checkpoint_factory import save
from tests.e2e.conftest import Server, idle, visit
from tests.run_factory import CONFIG

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300)]
MODEL = {**CONFIG["model"], "n_head": 4, "n_kv_head": 2, "window": {"size": 4, "pattern": "SB"}, "moe": {"n_expert": 4}}
TEXT = "<b>It</b> was <script>"


def test_heads_are_picked_by_their_map_and_tokens_are_text(server: Server, page: Page) -> None:
    save(create_run(server.runs, build_config({**CONFIG, "model": MODEL}), "one"), 10)
    visit(page, server.page("playground?checkpoint=one@10"))
    page.get_by_label("Prompt", exact=True).fill(TEXT)
    page.get_by_label("Prompt", exact=True).press("Tab")
    idle(page)
    page.get_by_role("button", name="Look at the prompt now").click()
    attention, strip = page.locator(".st-key-pg_attention"), page.locator(".st-key-pg_strip")
    expect(strip.locator(".nsewdrag").first).to_be_visible()
    idle(page)
    size = strip.locator(".nsewdrag").first.bounding_box()
    assert size is not None
    strip.locator(".nsewdrag").first.click(position={"x": size["height"] * 1.6, "y": size["height"] / 2})
    expect(page.get_by_role("combobox", name="Head")).to_have_value("Head 1, group 0, local 4")
    idle(page)

    cells = attention.locator(".nsewdrag").first
    box = cells.bounding_box()
    assert box is not None
    cells.hover(position={"x": box["width"] - 8, "y": box["height"] - 8})
    expect(attention.locator(".hovertext")).to_contain_text(re.compile(r"looks at .*%"))
    assert attention.locator("tspan[style*='bold']").count() == 0

    page.get_by_role("radio", name="Surprise of a text").click()
    idle(page)
    page.get_by_label("Text to judge").fill(TEXT)
    page.get_by_role("button", name="Colour it").click()
    card = page.locator(".st-key-pg_card_surprise")
    expect(card).to_contain_text(TEXT)
    assert card.locator("b, script").count() == 0
    expect(card.locator("span[title*='nats']").last).to_have_attribute("title", re.compile(r"nats, .*% · likeliest “"))
