"""What benchmarks measure: bytes as torch counts them, and in each case what its target is about."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import attention, memory, moe, save, step
from benchmarks.measure import Setup
from benchmarks.report import Case
from dgsgpt.metrics import read_events
from dgsgpt.planner import plan
from dgsgpt.train.settle import Settled

CPU = torch.device("cpu")
WHOLE = Setup(CPU, seconds=20.0)
QUICK = Setup(CPU, 0, quick=True)
KIB = 1024


@pytest.mark.parametrize("n_bytes", [64 * KIB, 1024 * KIB])
def test_memory_counts_peak_and_what_stays(n_bytes: int) -> None:
    def run() -> torch.Tensor:
        kept = torch.empty(n_bytes, dtype=torch.uint8)
        torch.empty(3 * n_bytes, dtype=torch.uint8)  # freed at once
        torch.empty(2 * n_bytes, dtype=torch.uint8)
        return kept

    assert WHOLE.memory(run) == (4 * n_bytes, n_bytes)


def test_memory_sees_what_an_operator_uses_inside_itself() -> None:
    x = torch.randn(256, 64)
    assert WHOLE.peak_bytes(lambda: torch.cdist(x, x).sum()) >= 256 * 256 * 4


def test_the_windows_memory_grows_with_the_length_and_not_with_its_square() -> None:
    case = attention._growth(QUICK, (256, 1024))
    exponent = {f.name: f.value for f in case.figures}["exponent of peak memory from T=256 to T=1024"]
    assert 0.9 < exponent < 1.2
    masked = attention._sides(WHOLE, {"mask": attention._masked(1024, 256, CPU)}, 1024)[0]
    assert WHOLE.peak_bytes(masked.run) > 0


def test_recomputing_needs_less_memory_and_the_planner_knows() -> None:
    (case,) = memory.run(QUICK)
    for kind in ("peak_bytes", "activations_bytes", "planned_bytes"):
        none, selective, full = (case.facts[mode][kind] for mode in memory.MODES)
        assert full < selective < none
    for facts in case.facts.values():
        assert facts["planned_bytes"] == pytest.approx(facts["peak_bytes"], rel=0.2)


def test_experts_and_dense_network_cost_the_same_arithmetic() -> None:
    configs = moe._configs(WHOLE, "fp32")
    dense = plan(configs.pop(moe.DENSE))
    assert len(configs) == 2
    for config in configs.values():
        assert config.tokens_per_step == 4096
        # The router is all there is beside the two experts of half the width.
        assert dense.flops_per_token < plan(config).flops_per_token < 1.01 * dense.flops_per_token


def test_steps_are_measured_at_the_sizes_of_the_targets() -> None:
    params = [plan(step._config(size, "off", "fp32")).params for size in step.SIZES]
    assert params == pytest.approx([10.7e6, 0.8e6], rel=0.02)


def test_a_compiler_that_does_not_work_leaves_its_sides_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.training.compile_blocks", lambda model: "no C++ compiler")
    (case,) = step.run(QUICK)
    assert not [name for name in case.times if name.startswith("compiled")]
    assert "left out: no C++ compiler" in case.notes


# ---------------------------------------------------------------- what `auto` chooses
def quick_step_case(monkeypatch: pytest.MonkeyPatch, precision: str, compile_: str) -> Case:
    chosen = Settled(precision, compile_, 2, 1, ("because",))
    monkeypatch.setattr("benchmarks.step.settle", lambda *args, **kwargs: chosen)
    with torch.compiler.set_stance("force_eager"):  # compiled sides run as they are
        (case,) = step.run(QUICK)
    return case


@pytest.mark.parametrize(("compile_", "side"), [("off", "eager fp32"), ("on", "compiled fp32")])
def test_the_choice_of_auto_is_judged_by_its_sides_times(
    monkeypatch: pytest.MonkeyPatch, compile_: str, side: str
) -> None:
    case = quick_step_case(monkeypatch, "fp32", compile_)
    figure = next(f for f in case.figures if f.name == "speed, auto's choice / eager fp32")
    assert figure.sides == ("eager fp32", side)
    assert figure.value == 1.0 or compile_ == "on"
    assert f"auto chooses {side} for a long run" in case.notes
    assert "  because" in case.notes


def test_a_choice_that_is_no_side_becomes_one(monkeypatch: pytest.MonkeyPatch) -> None:
    case = quick_step_case(monkeypatch, "fp16", "off")
    assert "eager fp16" in case.times
    assert "speed, eager fp16 / eager fp32" in [f.name for f in case.figures]


def test_what_auto_chooses_is_held_to_never_below_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.step.settle", lambda *args, **kwargs: Settled("fp32", "off", 2, 1))
    monkeypatch.setattr("benchmarks.step.SIZES", (step._Size(1, 2, 32, 16, 2, None),))
    with torch.compiler.set_stance("force_eager"):
        (case,) = step.run(Setup(CPU, 0))
    (figure,) = [f for f in case.figures if f.target]
    assert figure.name == "speed, auto's choice / eager fp32"
    assert figure.target == step.NEVER_BELOW
    assert figure.met


def test_auto_is_asked_by_the_trainers_own_function() -> None:
    with torch.compiler.set_stance("force_eager"):
        chosen = step.settled(step.QUICK_SIZES[0], CPU)
    assert "auto" not in (chosen.precision, chosen.compile)
    assert chosen.why
    assert step.side_name(replace(chosen, precision="bf16", compile="on")) == "compiled bf16"
    assert step.side_name(replace(chosen, precision="fp32", compile="off")) == "eager fp32"


# ---------------------------------------------------------------- saving
def test_saves_are_measured_at_about_1_10_and_50_million_parameters(tmp_path: Path) -> None:
    params = [plan(save._config(size, tmp_path, quick=True)).params for size in save.SIZES]
    assert params == pytest.approx([1e6, 10e6, 50e6], rel=0.1)


def test_a_save_in_the_foreground_is_on_the_disk_and_one_in_the_background_is_waited_for(tmp_path: Path) -> None:
    loop = save.Loop(save._config(save.QUICK_SIZES[0], tmp_path, quick=True), tmp_path, CPU)
    loop.advance(2)
    for side in (save.FOREGROUND, save.BACKGROUND):
        loop.save(side)
        loop.finish(side)
    events = [event for event in read_events(loop.run.path) if event["kind"] == "checkpoint"]
    assert [event["step"] for event in events] == [3, 4]
    assert events[0]["held_s"] == events[0]["seconds"]  # training waited for all of it
    assert [path.name for path in loop.run.checkpoints()] == ["step_00000004"]
    assert {side: len(taken) for side, taken in loop.seconds.items()} == {save.FOREGROUND: 1, save.BACKGROUND: 1}


def test_what_a_save_costs_counts_waiting_and_slower_steps() -> None:
    (case,) = save.run(QUICK)
    times = {side: timing.times_s for side, timing in case.times.items()}
    assert set(times) == {save.FOREGROUND, save.BACKGROUND, save.ALONE, save.BESIDE}
    whole = next(f for f in case.figures if f.name == "training time lost, background / foreground")
    costs = sorted(
        (times[save.BACKGROUND][i] + times[save.BESIDE][i] - times[save.ALONE][i]) / times[save.FOREGROUND][i]
        for i in range(3)
    )
    assert (whole.low, whole.value, whole.high) == pytest.approx(tuple(costs))
    for side in (save.FOREGROUND, save.BACKGROUND, save.BESIDE):
        assert math.isfinite(case.facts[side]["save_s"])
