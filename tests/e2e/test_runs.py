"""In a real browser: runs are ticked and compared, archived and brought back, queued for real, and reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from dgsgpt import files, process, run_queue
from dgsgpt.annotations import read
from dgsgpt.config import load_config
from dgsgpt.runs import Run, create_run
from tests.e2e.conftest import Server, idle, open_page, visit
from tests.e2e.test_checkpoints import CHECK_X, click_cell
from tests.e2e.test_journey import TOY, until
from tests.run_factory import config, make_run

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def more(page: Page, choice: str) -> None:
    page.get_by_role("button", name="More").click()
    page.get_by_role("menuitem", name=choice).click()
    idle(page)


def test_runs_are_ticked_compared_archived_and_reported(
    server: Server, page: Page, browser: Browser, tmp_path: Path
) -> None:
    first = make_run(server.runs, "first", config=config(lr=1e-3))
    make_run(server.runs, "second", config=config(moe=True, lr=3e-4))
    visit(page, server.page("runs?run=first"))
    expect(page.locator(".st-key-rn_actions")).to_contain_text("first")
    click_cell(page, CHECK_X, 0)
    expect(page.locator(".st-key-rn_card_settings")).to_contain_text("Learning rate")
    page.wait_for_url("**run=first&run=second*")
    expect(page.locator(".st-key-rn_chart .scatterlayer .trace")).to_have_count(2)

    with page.expect_download() as download:
        page.get_by_role("button", name="Report").click()
    report = tmp_path / "report.html"
    download.value.save_as(report)
    opened, watch = open_page(browser)
    opened.goto(report.as_uri())
    expect(opened.locator(".plot .scatterlayer .trace").first).to_be_visible()
    expect(opened.get_by_role("heading", name="2 runs compared")).to_be_visible()
    assert [p for p in watch.problems if "file://" not in p] == [], "the report asks nobody for anything"
    opened.context.close()

    page.reload()
    idle(page)
    more(page, "Archive")
    expect(page.locator(".st-key-rn_archive_line")).to_contain_text("first")
    assert read(first).run.archived
    page.get_by_role("button", name="Undo").click()
    until(lambda: not read(first).run.archived)
    idle(page)


def test_the_queue_goes_on_when_the_browser_is_gone(server: Server, browser: Browser, tmp_path: Path) -> None:
    source = tmp_path / "toy.yaml"
    source.write_text(TOY, encoding="utf-8")
    toy = load_config(source, ["train.steps=30", "train.eval_every=0", "train.sample_every=0"])
    waiting: list[Run] = [create_run(server.runs, toy, name) for name in ("one", "two")]
    run_queue.hold(server.runs)
    for run in waiting:
        run_queue.enqueue(run)
    opened, watch = open_page(browser)
    visit(opened, server.page("runs"))
    opened.locator(".st-key-rq_Later_one").get_by_role("button").click()
    until(lambda: run_queue.read_queue(server.runs).ids == ("two", "one"))
    idle(opened)
    opened.get_by_role("button", name="Release").click()
    until(lambda: run_queue.read_queue(server.runs).ids == ("one",))
    opened.context.close()
    until(lambda: all(run.status().state == "finished" for run in waiting))
    began = {run.id: run.status().started_at or 0.0 for run in waiting}
    ended = files.read_json(server.runs / "two" / "exit.json") or {}
    assert began["one"] >= ended["time"] - 0.1
    until(lambda: not process.is_alive(files.read_json(server.runs / run_queue.RUNNER)))
    assert not watch.problems
