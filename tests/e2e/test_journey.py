"""The main journey in a real browser: configure, train, watch, compare, write."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, Page, expect

from dgsgpt.runs import Run, list_runs
from tests.e2e.conftest import Server, check_page, idle, open_page, visit

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
TOY = """
data: {corpus: austen, tokenizer: {kind: byte}}
model: {n_layer: 2, n_head: 2, n_embd: 32, block_size: 64}
train: {steps: 100000, micro_batch_size: 4, lr: 3e-3, schedule: {warmup_steps: 20}, log_every: 5, eval_every: 100,
        eval_tokens: 2048, checkpoint_every: 50, sample_every: 100, sample_tokens: 16, device: cpu,
        precision: fp32, compile: "off"}
"""
START_MS = 300_000  # with other tests beside it; the demo also tries what is fastest
CHART_POINTS = """() => {
  const chart = document.querySelector(".st-key-train_card_loss .live-chart");
  return Math.max(0, ...(chart?._fullData ?? []).map((trace) => trace.x?.length ?? 0));
}"""


def until(condition: Callable[[], bool], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def go(page: Page, name: str) -> None:
    """Click a page in the top menu."""
    page.get_by_role("link", name=name, exact=True).click()
    expect(page).to_have_title(name)
    idle(page)


def take_over(page: Page, yaml: str, run_name: str) -> None:
    """Paste a config on the Configure page; the name it suggests shows that the server has taken it."""
    page.get_by_role("combobox", name="Start from").click()
    page.get_by_role("option", name="Paste or import YAML").click()
    box = page.get_by_role("textbox", name="YAML")
    box.fill(yaml)
    box.press("Control+Enter")
    idle(page)
    page.get_by_role("button", name="Take over").click()
    expect(page.get_by_test_id("stBottom").get_by_text(run_name)).to_be_visible()
    idle(page)


def flip(page: Page, name: str, on: bool) -> None:
    """Click a feature's switch; the dot of what differs from the profile shows that the server has taken it."""
    switch = page.get_by_role("switch", name=name)
    expect(switch).to_be_checked(checked=not on)
    switch.locator("xpath=ancestor::label").click()
    expect(page.get_by_role("switch", name=re.compile(re.escape(name) + ".*●"))).to_be_checked(checked=on)
    idle(page)


def test_from_an_empty_folder_to_a_text(server: Server, page: Page) -> None:
    visit(page, server.page())
    expect(page.get_by_text("No run yet").or_(page.get_by_text("no runs yet")).first).to_be_visible()

    go(page, "Configure")
    take_over(page, TOY, "austen-2x32")
    flip(page, "Rotary positions", on=False)
    flip(page, "Sliding window", on=True)
    flip(page, "Sparse mixture of experts", on=True)
    page.get_by_role("button", name="Start training").click()

    expect(page).to_have_title("Train")
    (run,) = list_runs(server.runs)
    assert run.config.model.moe is not None
    assert run.config.model.window is not None
    assert run.config.model.rope is None
    expect(page.get_by_text("Running").first).to_be_visible(timeout=START_MS)
    page.wait_for_function(f"({CHART_POINTS})() >= 3", timeout=120_000)
    before = page.evaluate(CHART_POINTS)
    page.wait_for_function(f"({CHART_POINTS})() > {before}", timeout=120_000)
    until(lambda: len(run.checkpoints()) >= 2, 300)
    page.get_by_role("button", name="Stop and save").click()
    expect(page.get_by_text("Stopped").first).to_be_visible(timeout=120_000)
    idle(page)
    compare_and_write(page, run)
    go(page, "Home")
    expect(page.get_by_text(run.id).first).to_be_visible()


def compare_and_write(page: Page, run: Run) -> None:
    """Two checkpoints side by side, then a text from the newest."""
    go(page, "Checkpoints")
    expect(page.get_by_text("Validation").first).to_be_visible()
    expect(page.locator(".st-key-ck_card_curves .js-plotly-plot")).to_be_visible()
    expect(page.locator(".st-key-ck_card_config")).to_be_visible()
    page.get_by_role("button", name="Verify").click()
    idle(page)
    page.get_by_role("button", name="Open both in Playground").click()
    expect(page).to_have_title("Playground")
    idle(page)
    page.get_by_role("button", name="Generate").click()
    for card in (".st-key-pg_card_out_0", ".st-key-pg_card_out_1"):
        expect(page.locator(card)).to_contain_text("tok/s", timeout=120_000)
    expect(page.locator(".st-key-pg_strip")).to_be_visible()  # drawn last, by a second run of the script
    idle(page)


def test_the_demo_started_by_the_command_is_announced_and_can_be_stopped(server: Server, page: Page) -> None:
    from dgsgpt.launch import start_demo

    start_demo(server.runs, automatic=True)  # as `dgsgpt dashboard --demo` does with no runs
    visit(page, server.page())
    expect(page.get_by_text("austen-demo").first).to_be_visible()
    expect(page.get_by_text("no runs yet").first).to_be_visible()  # says why it was started
    (run,) = list_runs(server.runs)
    until(lambda: run.status().step >= 5)
    page.get_by_role("button", name="Stop").first.click()
    until(lambda: run.status().state == "stopped")
    assert run.checkpoints()


@pytest.mark.parametrize("width", [1440, 900])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_is_drawn_without_complaint(server: Server, browser: Browser, width: int, scheme: str) -> None:
    from tests.run_factory import make_run

    make_run(server.runs, "one", "finished", 1000)
    make_run(server.runs, "two", "running", 300)
    opened, watch = open_page(browser, width=width, scheme=scheme)
    for name in (
        "",
        "data",
        "configure",
        "train?run=one",
        "train?run=two",
        "runs?run=one&run=two",
        "checkpoints",
        "playground",
        "evaluate",
    ):
        visit(opened, server.page(name))
        assert opened.evaluate("document.documentElement.scrollWidth") <= width, f"{name} scrolls sideways"
    check_page(opened, watch)
    opened.context.close()
