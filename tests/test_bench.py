"""Benchmarks: order and arithmetic of measuring; each one runs, reports, is recorded. No timing decides."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from benchmarks import record
from benchmarks.catalog import BENCHMARKS, NEEDS_BROWSER, NEEDS_GPU
from benchmarks.measure import MIN_ROUNDS, Side, Timing, compare, interleave
from benchmarks.report import Case, Figure, Target
from dgsgpt.cli import main


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments])


def quick_report(name: str) -> dict[str, Any]:
    # Compiling takes half a minute; the stance lets the compiled sides run as they are.
    with torch.compiler.set_stance("force_eager"):
        result = bench(name, "--quick", "--device", "cpu", "--seconds", "0", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# ---------------------------------------------------------------- measuring
class Clock:
    """Time that only passes when a side lets it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order = ""

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, *seconds: float) -> Side:
        taken = iter(seconds)

        def run() -> None:
            self.order += name
            self.now += next(taken)

        return Side(name, run)


def test_sides_run_in_turn_until_the_budget_is_used_up() -> None:
    clock = Clock()
    times = interleave([clock.side("A", 9, 2, 3, 2, 2), clock.side("B", 9, 1, 1, 2, 1)], seconds=13.5, clock=clock)
    # 3 s, 4 s, 4 s are below 13.5 s, so that a fourth round is begun and ended; the first one is a warm-up.
    assert clock.order == "AB" * 5
    assert times == {"A": Timing((2, 3, 2, 2)), "B": Timing((1, 1, 2, 1))}


def test_a_budget_that_is_too_small_still_gives_a_median() -> None:
    clock = Clock()
    times = interleave([clock.side("A", *[5] * 4), clock.side("B", *[7] * 4)], seconds=0, clock=clock)
    assert [len(t.times_s) for t in times.values()] == [MIN_ROUNDS, MIN_ROUNDS]


def test_what_a_side_left_running_is_its_own_time() -> None:
    clock = Clock()
    owed = 0.0

    def launch() -> None:
        nonlocal owed
        owed += 4.0

    def synchronize() -> None:
        nonlocal owed
        clock.now, owed = clock.now + owed, 0.0

    times = interleave(
        [Side("gpu", launch), clock.side("A", *[1] * 4)], seconds=0, synchronize=synchronize, clock=clock
    )
    assert times == {"gpu": Timing((4, 4, 4)), "A": Timing((1, 1, 1))}


def test_what_is_done_before_and_after_a_side_is_not_its_time() -> None:
    clock = Clock()
    before, after = clock.side("(", *[5] * 4).run, clock.side(")", *[6] * 4).run
    side = Side("A", clock.side("A", *[1] * 4).run, before, after)
    times = interleave([side, clock.side("B", *[2] * 4)], seconds=0, clock=clock)
    assert clock.order == "(A)B" * 4
    assert times == {"A": Timing((1, 1, 1)), "B": Timing((2, 2, 2))}


def test_a_ratio_is_the_median_of_its_rounds() -> None:
    # The second round was slow for both; the sides' own medians would not know.
    ratio = compare(Timing((3.0, 30.0, 8.0)), Timing((1.0, 15.0, 2.0)))
    assert (ratio.value, ratio.low, ratio.high) == (3.0, 2.0, 4.0)
    assert ratio.of_medians == 8.0 / 2.0


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target("P4", at_least=3.0), 3.0, True),
        (Target("P4", at_least=3.0), 2.99, False),
        (Target("P5", at_most=1.25), 1.25, True),
        (Target("P5", at_most=1.25), 1.26, False),
    ],
)
def test_a_target_is_printed_beside_its_figure(target: Target, value: float, met: bool) -> None:
    figure = Figure("time, a / b", value, target=target)
    assert figure.met is met
    assert figure.to_dict()["met"] is met
    assert str(figure).endswith(f"target {target}: {'met' if met else 'not met'}")
    assert Figure("time, a / b", value).met is None


# ---------------------------------------------------------------- each benchmark
@pytest.mark.parametrize(
    "name", [name for name in BENCHMARKS if name != "speedrun" and name not in NEEDS_GPU | NEEDS_BROWSER]
)
def test_a_quick_run_reports_sides_and_ratios(name: str) -> None:
    report = quick_report(name)
    assert report["benchmark"] == name
    assert report["quick"] is True
    assert report["command"].endswith(f"dgsgpt bench {name} --device cpu --seconds 0 --quick")
    assert {"cpu", "cpu_cores", "threads", "ram_bytes"} <= set(report["hardware"])
    assert report["versions"]["torch"] == torch.__version__
    assert report["cases"]
    for case in report["cases"]:
        assert len(case["sides"]) >= 2
        for side in case["sides"].values():
            check_side(side)
        assert case["figures"]
        for figure in case["figures"]:
            check_figure(figure, case["sides"])
            assert figure["target"] is None, "tiny shapes are held to no target"
    assert any(figure["sides"] for case in report["cases"] for figure in case["figures"])


@pytest.mark.slow
def test_a_quick_speedrun_trains_both_recipes_and_ends_in_the_line_of_the_contract(tiny_text: Path) -> None:
    result = bench("speedrun", "--text", str(tiny_text), "--quick", "--repeats", "1", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    for side in ("baseline", "ours"):
        assert set(found[side]) == {"step_seconds", "wall_seconds", "loss"}
        assert 0 < found[side]["step_seconds"] < found[side]["wall_seconds"]
        assert 0 < found[side]["loss"] < 5
    assert found["wall_ratio"] == pytest.approx(found["baseline"]["wall_seconds"] / found["ours"]["wall_seconds"])
    assert found["reached"] == (found["ours"]["loss"] <= found["baseline"]["loss"])


@pytest.mark.slow
def test_a_speedrun_to_a_target_has_no_baseline(tiny_text: Path) -> None:
    result = bench("speedrun", "--text", str(tiny_text), "--quick", "--repeats", "1", "--target", "4.9", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert set(found) == {"ours"}


def check_side(side: dict[str, Any]) -> None:
    times = side["times_s"]
    assert side["rounds"] == len(times) >= MIN_ROUNDS
    assert side["median_s"] == statistics.median(times)
    assert 0 < side["min_s"] == min(times) <= side["max_s"] == max(times)


def check_figure(figure: dict[str, Any], sides: dict[str, Any]) -> None:
    assert math.isfinite(figure["value"])
    if figure["sides"] is None:
        return
    of, to = (sides[name] for name in figure["sides"])
    rounds = [a / b for a, b in zip(of["times_s"], to["times_s"], strict=True)]
    assert figure["value"] == pytest.approx(statistics.median(rounds))
    assert (figure["low"], figure["high"]) == pytest.approx((min(rounds), max(rounds)))
    assert figure["of_medians"] == pytest.approx(of["median_s"] / to["median_s"])


# ---------------------------------------------------------------- the command
def test_without_a_name_the_benchmarks_are_listed_without_torch() -> None:
    code = (
        "import sys; from dgsgpt.cli import main; main(['bench'], standalone_mode=False); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, torch_loaded = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(BENCHMARKS)
    assert torch_loaded == "False"
    assert json.loads(bench("--json").stdout) == BENCHMARKS


def test_text_has_every_side_and_figure() -> None:
    times = {"a": Timing((0.002, 0.004, 0.003)), "b": Timing((0.5, 0.5, 0.5))}
    case = Case("T=8", {}, times, {"a": {"peak_bytes": 2048.0, "tokens_per_s": 5e4}})
    case.add_ratio("time, b / a", "b", "a", Target("P4", at_least=3))
    text = "\n".join(case.lines()).replace("\u00a0", " ")
    assert "T=8 (3 rounds)" in text
    assert "3.00 ms  (2.00 to 4.00)  peak 2.0 KiB  50k tokens/s" in text
    assert "time, b / a: 166.67 (125.00 to 250.00), target P4 at least 3: met" in text


def test_a_case_that_measured_nothing_still_says_why() -> None:
    case = Case("profile high", {}, {}, notes=["left out: this GPU has 24 GB"])
    assert list(case.lines()) == ["profile high", "  left out: this GPU has 24 GB"]
    assert case.to_dict()["sides"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["atention"], "benchmark 'atention' does not exist; did you mean attention? choose one of attention, moe, "),
        (["zzz"], "benchmark 'zzz' does not exist; choose one of attention, moe, "),
        pytest.param(
            ["loss", "--quick", "--device", "cuda"],
            "--device cuda: torch finds no GPU here; use auto or cpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = bench(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert len(result.stderr.splitlines()) == 1


def test_an_installation_without_benchmarks_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dgsgpt.bench_command.__file__", str(tmp_path / "dgsgpt" / "cli.py"))
    result = bench("attention")
    assert result.exit_code == 2
    assert "checkout" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# ---------------------------------------------------------------- recording
def test_recording_writes_a_dated_json_and_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    result = bench("moe", "--quick", "--device", "cpu", "--seconds", "0", "--json", "--record")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (written,) = (tmp_path / "results").glob("*.json")
    assert written.name.startswith(report["date"][:10])
    assert written.name.endswith("-moe-cpu.json")
    assert json.loads(written.read_text()) == report
    assert str(written) in result.stderr
    (row,) = rows(tmp_path / "results")
    assert report["command"] in row
    assert torch.__version__ in row
    assert f"{report['cases'][0]['figures'][0]['value']:.2f}" in row


def test_rows_are_appended_with_what_has_a_target(tmp_path: Path) -> None:
    judged = Figure("time, a / b", 3.5, 3.25, 3.75, 3.5, ("a", "b"), Target("P4", at_least=3.0)).to_dict()
    free = Figure("peak | bytes", 7.5).to_dict()
    report = {
        "benchmark": "attention",
        "date": "2026-01-02T03:04:05+00:00",
        "command": "dgsgpt bench attention",
        "quick": False,
        "hardware": {"device": "cpu", "cpu": "Some | CPU", "threads": 2},
        "versions": {"torch": "2.13"},
        "cases": [{"case": "T=8", "figures": [judged, free]}],
    }
    path = record.record(report, tmp_path)
    assert path.name == "2026-01-02T030405Z-attention-cpu.json"
    record.record({**report, "cases": [{"case": "T=8", "figures": [free]}]}, tmp_path)
    first, second = rows(tmp_path)
    assert "T=8: time, a / b 3.50 (3.25 to 3.75) P4 met |" in first
    assert "7.50" not in first
    assert "peak \\| bytes 7.50 |" in second
    assert {line.replace("\\|", "").count("|") for line in (first, second)} == {6}


def rows(folder: Path) -> list[str]:
    """Lines of the table below its heading."""
    text = (folder / record.TABLE).read_text()
    assert text.startswith(record.HEADING)
    return text.removeprefix(record.HEADING).splitlines()


def test_nothing_is_recorded_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    assert bench("moe", "--quick", "--device", "cpu", "--seconds", "0").exit_code == 0
    assert not (tmp_path / "results").exists()
