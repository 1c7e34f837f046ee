"""Pages that follow a run draw only what is new, in a few milliseconds while nothing is."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from benchmarks.browser import Server
from dgsgpt.metrics import MetricsWriter
from tests.e2e.conftest import idle, visit
from tests.run_factory import make_run, write_status


@pytest.mark.e2e
def test_nothing_is_drawn_while_nothing_is_new_and_a_change_is_seen(page: Page, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "watched", "running", 300)
    make_run(tmp_path / "runs", "ended")
    server = Server(tmp_path / "runs", tmp_path)
    server.start()
    try:
        visit(page, f"{server.url}/runs")
        expect(page.get_by_text("2 runs")).to_be_visible()
        # On a busy machine figures that were still being summed up are news, once; then there is none.
        _wait(lambda: all(one["fragments"] for one in server.told()[-2:]), "the page does not come to rest")
        before = len(server.told())
        _wait(lambda: len(server.told()) >= before + 3, "the page does not ask")
        assert all(one["fragments"] for one in server.told(before)), "the whole page was drawn for nothing"
        MetricsWriter(run.path).log(310, {"loss/val": 0.5})
        write_status(run, "finished", 310)
        _wait(lambda: not all(one["fragments"] for one in server.told(before)), "the change was not seen")
        idle(page)
        ended = len(server.told())
        time.sleep(5)
        assert len(server.told()) == ended, "nothing runs any more, and the page still asks"
        assert not any(one["torch"] for one in server.told())
    finally:
        page.goto("about:blank")  # or it would complain that the server has gone
        server.stop()
    assert server.peak_bytes > 50_000_000
    text = (tmp_path / "server.log").read_text(errors="replace")
    assert "Traceback" not in text, text


def _wait(done: object, otherwise: str) -> None:
    begun = time.monotonic()
    while not done():  # type: ignore[operator]
        assert time.monotonic() - begun < 60, otherwise
        time.sleep(0.2)
