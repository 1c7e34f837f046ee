"""The server as a stranger meets it: deep links, headers, the one script route, hostile hosts."""

from __future__ import annotations

import http.client
import urllib.request
from pathlib import Path

import plotly
import pytest
from playwright.sync_api import Page, expect

from dgsgpt.ui.app import PAGES
from dgsgpt.ui.live_chart import PLOTLY_ROUTE
from tests.e2e.conftest import Server, visit

pytestmark = pytest.mark.e2e


def test_deep_links_reach_their_page_on_a_fresh_server(server: Server, page: Page) -> None:
    for name in ("train", *(p for p in PAGES if p != "train")):  # the first request is a deep link
        visit(page, server.page("" if name == "home" else name))
        expect(page.get_by_role("link", name=name.capitalize(), exact=True)).to_be_visible()
        assert page.get_by_test_id("stSidebarNav").count() == 0
        assert page.get_by_role("dialog").count() == 0
        assert page.title().lower().startswith(name)


def test_every_answer_has_the_safety_headers(server: Server) -> None:
    with urllib.request.urlopen(server.page("train"), timeout=10) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "img-src 'self' data: blob:" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_plotly_is_served_from_the_installed_package(server: Server) -> None:
    installed = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    with urllib.request.urlopen(server.url + PLOTLY_ROUTE, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/javascript")
        assert answer.read() == installed.read_bytes()


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [("evil.example", "http://evil.example", 403), ("localhost", "http://evil.example", 403), ("localhost", None, 101)],
)
def test_websocket_is_refused_to_other_hosts_and_origins(
    server: Server, host: str, origin: str | None, status: int
) -> None:
    port = int(server.url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {
        "Host": f"{host}:{port}",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        **({"Origin": origin} if origin else {}),
    }
    connection.request("GET", "/_stcore/stream", headers=headers)
    assert connection.getresponse().status == status
    connection.close()
