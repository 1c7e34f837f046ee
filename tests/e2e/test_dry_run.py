"""A dry run in a real browser, which alone ticks: begun, watched to its result; then the page is reloaded."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from dgsgpt import dry_run
from dgsgpt.runs import list_runs
from tests.e2e.conftest import Server, idle, visit
from tests.e2e.test_journey import TOY, take_over

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_dry_run_is_watched_to_its_result_and_a_reload_keeps_the_draft(server: Server, page: Page) -> None:
    visit(page, server.page("configure"))
    take_over(page, TOY, "austen-2x32")
    page.get_by_role("button", name="Dry run, 3 steps").click()
    summary = page.locator(".st-key-summary")
    expect(summary.get_by_role("button", name="Cancel the dry run")).to_be_visible()
    expect(summary).to_contain_text("3 real steps", timeout=180_000)
    expect(summary).to_contain_text("by a dry run")
    (found,) = dry_run.history(server.runs)
    assert found.error == ""
    assert len(found.step_times) == 3
    assert list_runs(server.runs) == []
    idle(page)
    page.reload()
    idle(page)
    expect(page.get_by_test_id("stBottom").get_by_text("austen-2x32")).to_be_visible()
    expect(page.locator(".st-key-summary")).to_contain_text("3 real steps")
