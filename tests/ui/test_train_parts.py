"""Parts of the Train page: the clicked moment, samples and their changes, experts, log, alerts, machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dgsgpt.checkpoint import CheckpointInfo
from dgsgpt.hardware import Gpu, Hardware
from dgsgpt.ui import expert_view, train_alerts, train_log, train_machine, train_moment, train_samples
from dgsgpt.ui.theme import LIGHT
from tests.ui.test_charts import frame


def checkpoint(step: int, complete: bool = True) -> CheckpointInfo:
    problem = None if complete else "manifest.json is missing"
    return CheckpointInfo(Path(f"step_{step:08d}"), "a", step, problem=problem)


# ---------------------------------------------------------------- moment
def test_a_click_finds_the_nearest_step_sample_and_checkpoint() -> None:
    events: list[dict[str, Any]] = [{"kind": "sample", "step": s, "text": str(s)} for s in (100, 300, 500)]
    events += [{"kind": "health", "step": s} for s in (305, 900)] + [
        {"kind": "sample"},
        {"kind": "health", "step": "x"},
    ]
    data = frame()
    assert train_moment.step_at(data, "Tokens", 128 * 312.0) == 310
    assert train_moment.step_at(data.iloc[:0], "Step", 3.0) is None
    found = train_moment.moment_at(data, events, [checkpoint(400), checkpoint(200)], 310, 1000)
    assert found.sample == events[1]
    assert found.checkpoint == checkpoint(400)
    assert found.findings == [events[3]]
    assert found.figures["loss/train"] == data["loss/train"][30]
    assert found.figures["loss/val"] == data["loss/val"][29]  # the last one before
    empty = train_moment.moment_at(data, [], [], 5, 1000)
    assert (empty.sample, empty.checkpoint, empty.figures) == (None, None, {})
    assert [train_moment.away(300, s) for s in (300, 299, 310)] == [
        "at this step", "1\u00a0step earlier", "10\u00a0steps later"
    ]  # fmt: skip


# ---------------------------------------------------------------- samples
def test_samples_are_ordered_by_prompt_and_seed_and_a_step_written_twice_counts_once() -> None:
    def sample(step: object, prompt: str, text: str = "") -> dict[str, Any]:
        return {"kind": "sample", "step": step, "prompt": prompt, "seed": 1, "text": text}

    events = [sample(20, "a", "old"), sample(10, "a"), sample(10, "b"), sample(20, "a", "new"), sample(None, "c")]
    found = train_samples.series([*events, {"kind": "health", "step": 1}])
    assert list(found) == [("a", 1), ("b", 1)]
    assert [(s["step"], s["text"]) for s in found["a", 1]] == [(10, ""), (20, "new")]
    assert [train_samples.beside(n, i) for n, i in ((0, 0), (1, 0), (2, 1), (9, 8), (9, 3))] == [
        [], [0], [0, 1], [0, 4, 8], [0, 2, 3]
    ]  # fmt: skip


def test_changes_put_together_give_both_texts_again() -> None:
    before, after = "it was  a truth\nuniversally known", "it is a truth  universally\nknown indeed"
    pieces = train_samples.changes(before, after)
    assert "".join(text for kind, text in pieces if kind != "gone") == after
    assert "".join(text for kind, text in pieces if kind != "new") == before
    assert ("gone", "was  ") in pieces
    assert train_samples.changes("", "x") == [("new", "x")]
    shown = train_samples.said_html({"text": "<b>one</b> {x}"}, {"text": "<i>two</i> {x}"})
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "{x}" in shown


# ---------------------------------------------------------------- experts
def test_the_heat_map_has_a_row_for_each_expert_and_averages_neighbours() -> None:
    steps = np.arange(1, 1001)
    share = np.linspace(0.1, 0.9, 1000)
    columns = {"moe/load/0/10": share, "moe/load/0/2": 1 - share, "moe/load/3/0": share, "moe/load/x/0": share}
    data = pd.DataFrame({"step": steps, **columns})
    data.loc[5, "moe/load/0/2"] = np.nan
    names = expert_view.loads_of(data)
    assert names == {0: ["moe/load/0/2", "moe/load/0/10"], 3: ["moe/load/3/0"]}
    at, shares = expert_view.load_map(data, names[0])
    assert shares.shape == (2, expert_view.COLUMNS) == (2, len(at))
    np.testing.assert_allclose(shares.sum(0), 1.0)
    assert (np.diff(shares[1]) > 0).all()
    figure = expert_view.heat_map(LIGHT, at, shares)
    assert (figure.data[0].zmin, figure.data[0].zmax) == (0, 100)  # even is 50 %, in the middle
    assert len(expert_view.heat_map(LIGHT, np.empty(0), np.empty((4, 0))).data) == 1


# ---------------------------------------------------------------- log
def test_the_last_error_is_found_with_its_traceback() -> None:
    log = [
        "12:00:01 step 1  loss 3", "error: an older one", "Traceback (most recent call last):", '  File "a.py", line 1',
        "    f()", "torch.OutOfMemoryError: CUDA out of memory", "12:00:02 step 2  loss 2 error_rate 0",
    ]  # fmt: skip
    assert train_log.last_error(log) == log[2:6]
    assert train_log.last_error(log[:2]) == ["error: an older one"]
    health = "12:00:01 step 9  health  name nonfinite  severity error  message the loss is not finite"
    assert train_log.last_error([health, log[0]]) == [health]
    assert train_log.last_error([log[0], log[-1]]) == []
    assert train_log.matching(log, "STEP error_rate") == [log[6]]


# ---------------------------------------------------------------- alerts
def test_only_what_is_new_since_the_last_look_is_told() -> None:
    events = [{"kind": "health", "step": 1}, {"kind": "sample"}, {"kind": "health", "step": 2}]
    assert train_alerts.new_findings(events, None) == []
    assert train_alerts.new_findings(events, 1) == [events[2]]
    assert train_alerts.new_findings(events, 2) == []
    saved = [checkpoint(400), checkpoint(300, complete=False), checkpoint(200)]
    assert train_alerts.before(saved, 350) == saved[2]
    assert train_alerts.before(saved, 401) == saved[0]
    assert train_alerts.before(saved, 100) is None
    assert train_alerts.before(saved, None) is None


# ---------------------------------------------------------------- machine
@pytest.mark.parametrize("gpu", [True, False])
def test_curves_of_the_run_stand_beside_the_figures_of_now(gpu: bool) -> None:
    cards = (Gpu(0, "RTX 4090", 24 << 30, 4 << 30, 97.0, 71, None),) if gpu else ()
    machine = Hardware(cards, "cpu", 8, 12.0, 32 << 30, 24 << 30, 1 << 40, 1 << 39)
    logged = pd.DataFrame({"step": [1, 2, 3], "sys/gpu_temp_c": [60.0, np.nan, 70.0], "time_s": [1.0, 2.0, 3.0]})
    rows, own = train_machine.rows([machine, machine], logged, "#000000")
    shown = {str(row[0]).split(">")[1].split("<")[0]: str(row[2]) for row in rows}
    assert own is gpu
    assert ("Temperature" in shown) is gpu
    assert "Power" not in shown  # a sensor that the GPU hides
    assert "8.0\u00a0GiB" in shown["RAM" if gpu else "Memory"]
    if gpu:
        assert "71\u00a0°C" in shown["Temperature"]
        assert "20.0\u00a0GiB" in shown["Memory"]
