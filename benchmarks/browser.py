"""A real server of the dashboard and a real Chromium, for benchmarks: started, looked at, ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from dgsgpt.errors import DgsgptError
from dgsgpt.serve import home_script
from dgsgpt.threads import wait_politely

if TYPE_CHECKING:
    from playwright.sync_api import Page

WAIT_S = 300.0
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
_DRAWN = """() => {
  const app = document.querySelector("[data-testid=stApp]");
  return app && app.dataset.testScriptState === "notRunning"
    && document.querySelector("[data-testid=stMain] h1, [role=heading]")
    && !document.querySelector("[data-testid=stSkeleton]")
    && !document.body.innerText.includes("being summed up")
    && [...document.querySelectorAll(".live-chart")].every((box) => box.querySelector("svg.main-svg"));
}"""


@dataclass
class Server:
    """The dashboard over one folder of runs; `start` and `stop` as often as wanted."""

    runs: Path
    folder: Path  # for its log and its datasets
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    url: str = ""
    peak_bytes: int = 0  # the most memory that any of its processes took

    @property
    def _log(self) -> Path:
        return self.folder / "runs-of-scripts.jsonl"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = int(s.getsockname()[1])
        environment = {**os.environ, "DGSGPT_RUNS": str(self.runs), "DGSGPT_DATASETS": str(self.folder / "datasets")}
        wait_politely(environment)
        words = [sys.executable, "-m", "benchmarks.timed_server", str(self._log), str(home_script())]
        words += [f"--server.port={port}", "--server.headless=true", "--server.fileWatcherType=none"]
        with (self.folder / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment,
                cwd=home_script().parent,
            )  # fmt: skip
        self.url = f"http://127.0.0.1:{port}"
        begun = time.monotonic()
        while time.monotonic() - begun < WAIT_S:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2):
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise DgsgptError(f"the dashboard's server did not start; see {self.folder / 'server.log'}")

    def stop(self) -> None:
        """End the server."""
        if self.process is None:
            return
        with contextlib.suppress(psutil.Error):
            self.peak_bytes = max(self.peak_bytes, peak_bytes(self.process.pid))
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self) -> None:
        """A server that remembers nothing."""
        self.stop()
        self.start()

    def told(self, since: int = 0) -> list[dict[str, Any]]:
        """Runs of scripts so far, from number `since` on."""
        try:
            return [json.loads(line) for line in self._log.read_text().splitlines()[since:]]
        except FileNotFoundError:
            return []


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had so far; what it has now where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return int(psutil.Process(pid).memory_info().rss)


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    """A page of a browser that has seen nothing yet.

    Raises:
        DgsgptError: there is no Chromium, or no playwright to drive it.
    """
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise DgsgptError("this benchmark drives a browser: pip install 'dgsgpt[test]'") from None
    if path is None:
        raise DgsgptError("this benchmark drives a browser and finds none: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        try:
            page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
            page.set_default_timeout(1000 * WAIT_S)
            yield page
        finally:
            browser.close()


def visit(page: Page, address: str) -> None:
    """Open an address and wait until the page's script has run and everything on it is drawn."""
    page.goto(address)
    page.wait_for_function(_DRAWN, polling="raf")
    boxes = page.get_by_test_id("stException").all_inner_texts()
    if boxes:
        raise DgsgptError(f"{address} shows an exception: {boxes[0][:300]}")
