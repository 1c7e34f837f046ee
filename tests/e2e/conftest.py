"""A real server on a free port with its own folders, and a real Chromium that fails on anything like an error."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, expect, sync_playwright

from dgsgpt.files import read_json
from dgsgpt.serve import home_script

REQUIRED = os.environ.get("DGSGPT_REQUIRE_BROWSER") == "1"
SERVER_FLAGS = ["--server.headless=true", "--server.fileWatcherType=none"]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# A deep link asks for these below its own path first, and then at the root (streamlit's own frontend does).
expect.set_options(timeout=60_000)  # a busy machine is slow, not wrong

_PROBES = re.compile(r"/[a-z]+/_stcore/(health|host-config)$")


@dataclass
class Server:
    """A running dashboard."""

    url: str
    runs: Path
    datasets: Path
    log: Path
    process: subprocess.Popen[bytes] = field(repr=False)

    def page(self, name: str = "") -> str:
        """Address of a page."""
        return f"{self.url}/{name}"


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_server(folder: Path) -> Server:
    """Serve the dashboard with runs and datasets below `folder`, and wait until it answers."""
    runs, datasets, log = folder / "runs", folder / "datasets", folder / "server.log"
    runs.mkdir(exist_ok=True)
    datasets.mkdir(exist_ok=True)
    port = free_port()
    environment = {**os.environ, "DGSGPT_RUNS": str(runs), "DGSGPT_DATASETS": str(datasets), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", str(home_script()), f"--server.port={port}", *SERVER_FLAGS],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=folder,
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", runs, datasets, log, process)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{server.url}/_stcore/health", timeout=2):
                return server
        except OSError:
            assert process.poll() is None, f"the server ended at once:\n{log.read_text()}"
            time.sleep(0.1)
    stop_server(server)
    pytest.fail(f"the server did not answer in 40 s:\n{log.read_text()}")


def stop_server(server: Server) -> None:
    """End the server, and every supervisor and trainer that was started through it."""
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(10)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait(10)
    for proc_file in server.runs.glob("*/proc.json"):
        known = read_json(proc_file) or {}
        for identity in (known, known.get("trainer") or {}):
            _kill_tree(identity.get("pid"))
    for status_file in server.runs.glob("*/status.json"):
        _kill_tree((read_json(status_file) or {}).get("pid"))


def _kill_tree(pid: object) -> None:
    """Kill a process of this project and its children; one that is not ours any more is left alone."""
    if not isinstance(pid, int) or pid == os.getpid():
        return
    try:
        process = psutil.Process(pid)
        if not any("dgsgpt" in part for part in process.cmdline()):
            return
        for one in (*process.children(recursive=True), process):
            one.kill()
    except psutil.NoSuchProcess:
        return


def check_log(server: Server) -> None:
    """The server's log must not tell of an exception that the browser did not show."""
    text = server.log.read_text(errors="replace")
    assert "Traceback" not in text, text
    assert "Uncaught app" not in text, text


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A fresh server with empty folders."""
    running = start_server(tmp_path)
    try:
        yield running
    finally:
        stop_server(running)
    check_log(running)


# ---------------------------------------------------------------- browser
def chromium() -> str | None:
    """Path of a Chromium on this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, or the test is skipped (failed where DGSGPT_REQUIRE_BROWSER=1)."""
    path = chromium()
    if path is None:
        reason = "no Chromium found: browser tests need one (apt-get install chromium)"
        pytest.fail(reason) if REQUIRED else pytest.skip(reason)
    with sync_playwright() as playwright:
        started = _launch(playwright, path)
        try:
            yield started
        finally:
            started.close()


def _launch(playwright: Playwright, path: str) -> Browser:
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


class Watch:
    """Collects what a page complains about."""

    def __init__(self, page: Page) -> None:
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(f"page error: {error}"))
        page.on("console", self._console)
        page.on("request", lambda request: self._request(request.url, page))

    def _console(self, message: ConsoleMessage) -> None:
        address = message.location.get("url", "")
        probe = "404" in message.text and _PROBES.search(address)
        if message.type == "error" and not probe:
            self.problems.append(f"console: {message.text} ({address})")

    def _request(self, url: str, page: Page) -> None:
        if not url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")):
            self.problems.append(f"request to another machine: {url}")


def open_page(browser: Browser, width: int = 1440, height: int = 1000, scheme: str = "light") -> tuple[Page, Watch]:
    """A new page in its own context, and what watches it."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(60_000)
    return page, Watch(page)


def check_page(page: Page, watch: Watch) -> None:
    """No exception box, no page error, no console error, no request elsewhere."""
    boxes = page.get_by_test_id("stException").all_inner_texts()
    assert not boxes, boxes
    assert not watch.problems, watch.problems


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test at its end on anything that looks like an error."""
    opened, watch = open_page(browser)
    yield opened
    check_page(opened, watch)
    opened.context.close()


def idle(page: Page) -> None:
    """Wait until the script of the page has run, and the browser has loaded what draws each element."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning", timeout=120_000)
    expect(page.get_by_test_id("stSkeleton")).to_have_count(0, timeout=120_000)


def visit(page: Page, address: str) -> None:
    """Open an address and wait until it is drawn."""
    page.goto(address)
    idle(page)
