"""The dashboard on many and on long runs, in a real browser: how long people wait, and what the server does for it.

Cold: nobody has read the runs before, so there are no side files, and the server has just been started and has shown
a page without runs. Restarted: the same with side files. Warm: the same server again. The files themselves lie in the
system's cache each time. A page counts as drawn when its script has run and every chart on it is there.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import synthetic
from benchmarks.browser import Server, chromium, visit
from benchmarks.measure import Setup, Side, Timing
from benchmarks.report import Case, Figure, Target
from dgsgpt import files, metric_store, process
from dgsgpt.format import number
from dgsgpt.runs import Run, list_runs
from dgsgpt.supervise import child_environment

if TYPE_CHECKING:
    from playwright.sync_api import Page

KEPT = "DGSGPT_BENCH_DATA"  # a folder in which the synthetic runs stay for the next time
OVERLAID = 20
IDLE_S = 12.0
VISITS = 5
COLD, RESTARTED, WARM = "cold", "restarted", "warm"
PAGES = {"home": "", "data": "data", "configure": "configure", "runs": "runs", "checkpoints": "checkpoints"}
TORCH_PAGES = frozenset({"playground"})


@dataclass(frozen=True)
class Size:
    """How many runs of how many lines, and the lines of the long one."""

    runs: int = 100
    lines: int = 100_000
    long: int = 1_000_000


QUICK = Size(4, 1200, 3000)


@dataclass(frozen=True)
class Bench:
    """What every case needs: the setup, a server over the runs, a page of a browser."""

    setup: Setup
    size: Size
    server: Server
    page: Page

    def target(self, name: str, at_most: float) -> Target | None:
        """A bound, except with tiny shapes."""
        return None if self.setup.quick else Target(name, at_most=at_most)

    def visit(self, address: str) -> None:
        """Open a page and wait until it is drawn."""
        visit(self.page, f"{self.server.url}/{address}")


def run(setup: Setup) -> Iterator[Case]:
    """Start-up, many runs, warm pages, refreshes with nothing new, one long run, memory."""
    size = QUICK if setup.quick else Size()
    with made_runs(size) as (many, long), tempfile.TemporaryDirectory(prefix="dgsgpt-dashboard-") as folder:
        with chromium() as page, served(many, Path(folder) / "many") as server:
            bench = Bench(setup, size, server, page)
            yield start_up(bench)
            yield many_runs(bench)
            yield warm_pages(bench)
            yield nothing_new(bench)
            bench.server.stop()
            yield memory(bench, f"{size.runs} runs of {number(size.lines)} lines")
        with chromium() as page, served(long, Path(folder) / "long") as server:
            bench = Bench(setup, size, server, page)
            yield long_run(bench)
            bench.server.stop()
            yield memory(bench, f"a run of {number(size.long)} lines")


@contextlib.contextmanager
def served(runs: Path, folder: Path) -> Iterator[Server]:
    """A server that is not started yet, and is ended whatever happens."""
    folder.mkdir()
    server = Server(runs, folder)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def made_runs(size: Size) -> Iterator[tuple[Path, Path]]:
    """Folders with the many runs and with the long one; those of an earlier time where they are kept."""
    with contextlib.ExitStack() as stack:
        kept = os.environ.get(KEPT)
        root = Path(kept or stack.enter_context(tempfile.TemporaryDirectory(prefix="dgsgpt-runs-"))).absolute()
        for folder, runs, lines in (("many", size.runs, size.lines), ("long", 1, size.long)):
            place = root / f"{folder}-{runs}-{lines}"
            if not (place / "made").exists():
                shutil.rmtree(place, ignore_errors=True)  # of a time that was cut short
                synthetic.make_runs(place, runs, lines)
                (place / "made").touch()
        yield root / f"many-{size.runs}-{size.lines}", root / f"long-1-{size.long}"


def forget(root: Path) -> None:
    """Remove what readers have kept."""
    for path in root.glob(f"*/{metric_store.NAME}"):
        path.unlink()


# ---------------------------------------------------------------- cases
def start_up(bench: Bench) -> Case:
    """`dgsgpt --help`, and the first page of a server that was not there before."""

    def first_page() -> None:
        bench.server.start()
        bench.visit("")

    help_side, page_side = "dgsgpt --help", "server's start to the first page"
    sides = [Side(help_side, show_help), Side(page_side, first_page, before=bench.server.stop)]
    case = Case("start-up", {"runs": bench.size.runs}, bench.setup.time(sides))
    add_seconds(case, help_side, bench.target("P11 help", 0.5))
    add_seconds(case, page_side, bench.target("P11 first page", 3.0))
    return case


def show_help() -> None:
    """The command line's help, in a process of its own."""
    command = [sys.executable, "-m", "dgsgpt.cli", "--help"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=child_environment()).stdout
    assert "dashboard" in said, "that is not the help"


def many_runs(bench: Bench) -> Case:
    """All runs listed, then the losses of twenty of them drawn over each other."""
    names = [run.id for run in list_runs(bench.server.runs)[:OVERLAID]]
    train = f"train?run={names[0]}&with={','.join(names[1:])}"

    def look() -> None:
        bench.visit("runs")
        bench.visit(train)

    times = bench.setup.time(three_ways(bench, look))
    settings = {"runs": bench.size.runs, "lines": bench.size.lines, "overlaid": len(names)}
    case = Case(f"{bench.size.runs} runs of {number(bench.size.lines)} lines, listed and drawn", settings, times)
    for way, seconds in ((COLD, 10.0), (RESTARTED, 10.0), (WARM, 2.0)):
        add_seconds(case, way, bench.target(f"P10 {way}", seconds))
    return case


def long_run(bench: Bench) -> Case:
    """The Train page of one long run."""
    (run,) = list_runs(bench.server.runs)
    times = bench.setup.time(three_ways(bench, lambda: bench.visit(f"train?run={run.id}")))
    case = Case(f"a run of {number(bench.size.long)} lines, opened", {"lines": bench.size.long}, times)
    for way in (COLD, RESTARTED, WARM):
        add_seconds(case, way, bench.target(f"P10 {way}", 2.0))
    return case


def three_ways(bench: Bench, look: Callable[[], None]) -> list[Side]:
    """The same look at a server that knows nothing, one that finds side files, and one that remembers."""

    def restart() -> None:
        bench.server.restart()
        bench.visit("data")  # what a start takes is a figure of its own

    def forget_all() -> None:
        bench.server.stop()
        forget(bench.server.runs)
        restart()

    return [Side(COLD, look, before=forget_all), Side(RESTARTED, look, before=restart), Side(WARM, look)]


def warm_pages(bench: Bench) -> Case:
    """What the server does for a page that it has shown before, from the browser's asking until it has all."""
    names = [run.id for run in list_runs(bench.server.runs)[:OVERLAID]]
    pages = {**PAGES, "train": f"train?run={names[0]}"}
    pages[f"train, {len(names)} runs"] = f"{pages['train']}&with={','.join(names[1:])}"
    case = Case("server time of a warm page", {"runs": bench.size.runs, "visits": VISITS}, {})
    for name, address in pages.items():
        bench.visit(address)
        visits = [server_seconds(bench, address) for _ in range(VISITS)]
        case.times[name] = Timing(tuple(seconds for seconds, _ in visits))
        case.facts[name] = {"cpu_ms": 1000 * statistics.median(worked for _, worked in visits)}
    for name in case.times:
        add_seconds(case, name, bench.target("P10 page", 200), "ms", 1000)
    assert not any(one["torch"] for one in bench.server.told()), "a page has loaded torch"
    case.notes = [
        "a new session each time; all runs of the page's script are added up; torch is not loaded",
        "cpu is the script's own work: where the time is far above it, other programs had the machine",
    ]
    return case


def server_seconds(bench: Bench, address: str) -> tuple[float, float]:
    """Seconds that the server's scripts run for one visit, and those of the processor among them."""
    before = len(bench.server.told())
    bench.visit(address)
    runs = bench.server.told(before)
    return sum(one["seconds"] for one in runs), sum(one["cpu_s"] for one in runs)


def nothing_new(bench: Bench) -> Case:
    """Pages that follow a live run while it writes nothing but its heartbeat: each refresh, as the server runs it."""
    case = Case("a refresh with nothing new", {"watched_s": IDLE_S}, {})
    with live_run(bench) as (run, beat):
        for name, address in (("train", f"train?run={run.id}"), ("home", ""), ("runs", "runs")):
            beat()
            bench.visit(address)
            time.sleep(1.0)
            before = len(bench.server.told())
            time.sleep(IDLE_S / 6 if bench.setup.quick else IDLE_S)
            refreshes = bench.server.told(before)
            case.settings[f"refreshes of {name}"] = len(refreshes)
            if refreshes:
                case.times[name] = Timing(tuple(one["seconds"] for one in refreshes))
                case.facts[name] = {"cpu_ms": 1000 * statistics.median(one["cpu_s"] for one in refreshes)}
    for name in case.times:
        add_seconds(case, name, bench.target("P10 refresh", 30), "ms", 1000)
    return case


@contextlib.contextmanager
def live_run(bench: Bench) -> Iterator[tuple[Run, Callable[[], None]]]:
    """A run half done whose process lives and waits, and what makes its heart beat."""
    whole = synthetic.plan_run(bench.size.runs, bench.size.lines)
    plan = replace(whole, state="running", lines=bench.size.lines // 2)
    run = synthetic.make_run(bench.server.runs, plan)
    waiting = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)

    def beat() -> None:
        status = synthetic.status(plan, 600.0) | {"heartbeat_at": time.time(), "started_at": time.time() - 600}
        files.write_json(run.path / "status.json", status, durable=False)

    try:
        files.write_json(run.path / "proc.json", process.identify(waiting.pid), durable=False)
        beat()
        yield run, beat
    finally:
        waiting.kill()
        waiting.wait()
        for path in sorted(run.path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        run.path.rmdir()


def memory(bench: Bench, what: str) -> Case:
    """The most memory that any of the servers took."""
    case = Case(f"memory, {what}", {}, {})
    peak = bench.server.peak_bytes / 2**20
    case.figures.append(Figure("peak MiB of the server", peak, target=bench.target("P10 memory", 1024)))
    return case


def add_seconds(case: Case, side: str, target: Target | None, unit: str = "seconds", scale: float = 1.0) -> None:
    """The time of a side, held to a target in the same unit."""
    t = case.times[side]
    median, low, high = (scale * seconds for seconds in (t.median_s, t.min_s, t.max_s))
    case.figures.append(Figure(f"{unit}, {side}", median, low, high, target=target))
