"""The loss chart in a browser: it grows in place, keeps the zoom, follows the theme, rests when nothing is new."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.conftest import Server, visit
from tests.run_factory import log_steps, make_run, write_status

pytestmark = pytest.mark.e2e

CHART = ".st-key-train_card_loss .live-chart"
COUNT = f"""() => {{
  const chart = document.querySelector("{CHART}");
  return Math.max(0, ...(chart?._fullData ?? []).map((trace) => trace.x?.length ?? 0));
}}"""


def chart(page: Page, expression: str) -> Any:
    """A value computed from the chart's element, as `c`."""
    return page.evaluate(f"""() => {{ const c = document.querySelector("{CHART}"); return {expression}; }}""")


def drag_zoom(page: Page) -> None:
    """Draw a zoom box over the middle of the plot."""
    box = page.locator(f"{CHART} .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.8 * box["height"], steps=5)
    page.mouse.up()


def test_zoom_is_kept_while_data_grows(server: Server, page: Page) -> None:
    run = make_run(server.runs, "growing", "running", 300)
    visit(page, server.page("train?run=growing"))
    page.wait_for_function(f"({COUNT})() == 30")
    before = chart(page, "c._fullLayout.xaxis.range.slice()")
    drag_zoom(page)
    page.wait_for_function(f"""document.querySelector("{CHART}")._fullLayout.xaxis.range[0] > {before[0]} + 20""")
    zoomed = chart(page, "[c._fullLayout.xaxis.range.slice(), c._fullLayout.yaxis.range.slice()]")
    log_steps(run, 310, 400)
    write_status(run, "running", 400)
    page.wait_for_function(f"({COUNT})() == 40")
    assert chart(page, "[c._fullLayout.xaxis.range.slice(), c._fullLayout.yaxis.range.slice()]") == zoomed
    page.locator(f"{CHART} .nsewdrag").first.dblclick()
    page.wait_for_function(f"""document.querySelector("{CHART}")._fullLayout.xaxis.range[1] === 480""")
    log_steps(run, 410, 500)
    page.wait_for_function(f"""document.querySelector("{CHART}")._fullLayout.xaxis.range[1] === 600""")


def test_a_click_shows_the_moment_and_neither_it_nor_a_picture_changes_the_view(server: Server, page: Page) -> None:
    run = make_run(server.runs, "clicked", "running", 600, checkpoints=(400,))
    visit(page, server.page("train?run=clicked&x=tokens"))
    page.wait_for_function(f"({COUNT})() == 60")
    drag_zoom(page)
    page.wait_for_function(f"""document.querySelector("{CHART}")._fullLayout.xaxis.range[0] > 5000""")
    view = chart(page, "[c._fullLayout.xaxis.range.slice(), c._fullLayout.yaxis.range.slice()]")
    page.evaluate(f"""() => {{ window.chartNode = document.querySelector("{CHART}"); }}""")
    box = page.locator(f"{CHART} .nsewdrag").first.bounding_box()
    assert box is not None
    page.wait_for_timeout(600)  # with the end of the drag it would be a double click
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"], steps=4)
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.5 * box["height"])
    moment = page.locator(".st-key-train_moment")
    expect(moment).to_contain_text("Sample of step")
    expect(moment).to_contain_text("Checkpoint of step 400")
    page.get_by_role("button", name="More").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Picture of the chart (PNG)").click()
    assert download.value.suggested_filename == "clicked-loss.png"
    assert download.value.path().read_bytes().startswith(b"\x89PNG")
    log_steps(run, 610, 700)
    page.wait_for_function(f"({COUNT})() == 70")
    expect(moment).to_be_visible()
    assert chart(page, "[c._fullLayout.xaxis.range.slice(), c._fullLayout.yaxis.range.slice()]") == view
    assert page.evaluate(f"""window.chartNode === document.querySelector("{CHART}")""")


def test_unzoomed_chart_follows_the_data(server: Server, page: Page) -> None:
    run = make_run(server.runs, "growing", "running", 300)
    visit(page, server.page("train?run=growing"))
    page.wait_for_function(f"({COUNT})() == 30")
    before = chart(page, "c._fullLayout.xaxis.range[1]")
    log_steps(run, 310, 600)
    page.wait_for_function(f"({COUNT})() == 60")
    assert chart(page, "c._fullLayout.xaxis.range[1]") > before


def test_refresh_with_nothing_new_draws_nothing(server: Server, page: Page) -> None:
    make_run(server.runs, "idle", "running", 300)
    visit(page, server.page("train?run=idle"))
    page.wait_for_function(f"({COUNT})() == 30")
    page.evaluate(f"""() => {{
      window.drawn = 0;
      document.querySelector("{CHART}").on("plotly_afterplot", () => {{ window.drawn += 1; }});
      window.chartNode = document.querySelector("{CHART}");
    }}""")
    page.wait_for_timeout(5000)  # more than two refreshes
    assert page.evaluate("window.drawn") == 0
    assert page.evaluate(f"""window.chartNode === document.querySelector("{CHART}")""")


@pytest.mark.parametrize("state", ["running", "finished"])
def test_chart_and_cards_follow_a_change_of_theme(server: Server, page: Page, state: str) -> None:
    make_run(server.runs, "themed", state, 300)
    visit(page, server.page("train?run=themed"))
    page.wait_for_function(f"({COUNT})() == 30")
    ink = chart(page, "c._fullLayout.font.color")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"""document.querySelector("{CHART}")._fullLayout.font.color !== "{ink}\"""")
    expect(page.get_by_role("heading", name="themed")).to_have_css("color", "rgb(236, 233, 228)")
    expect(page.get_by_text("Learning rate", exact=True)).to_have_css("color", "rgb(236, 233, 228)")
    page.emulate_media(color_scheme="light")
    expect(page.get_by_text("Learning rate", exact=True)).to_have_css("color", "rgb(31, 29, 26)")
