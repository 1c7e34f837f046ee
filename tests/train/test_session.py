"""Whole runs in this process: what they write, how they stop, and that resuming changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import RunConfig
from dgsgpt.evaluation import evaluate
from dgsgpt.metrics import METRICS, read_events, read_metrics
from dgsgpt.runs import Run, create_run
from dgsgpt.train.report import StopRequest
from dgsgpt.train.session import train_run

Make = Callable[..., RunConfig]

FEATURES = {
    "plain": {},
    "dropout": {"model.dropout": 0.1},
    "moe, window, gqa": {"model.moe.n_expert": 4, "model.window.size": 8, "model.n_kv_head": 1},
    "learned positions, layernorm": {
        "model.rope": None,
        "model.norm": "layernorm",
        "model.mlp": "gelu",
        "model.bias": True,
    },
    "accumulation, checkpointing": {"train.grad_accum_steps": 2, "train.gradient_checkpointing": "full"},
    "bf16": {"train.precision": "bf16"},
    "expert biases, both windows, shortcuts": {
        "model.moe": {"n_expert": 4, "balance": "bias"},
        "model.window": {"size": 8, "pattern": "B"},
        "model.value_residual": True,
        "model.x0_shortcut": True,
    },
}


class StopAt(StopRequest):
    """Asks to stop once so many steps are done."""

    def __init__(self, run: Run, step: int) -> None:
        super().__init__(run.path)
        self._run, self._step, self.calls = run, step, 0

    def check(self) -> bool:
        self.calls += 1
        if self.calls > self._step:
            self.reason = "asked to stop"
        return self.reason is not None


def train(root: Path, config: RunConfig, run_id: str, stop_at: int | None = None) -> tuple[Run, int]:
    run = Run(root / run_id) if (root / run_id).exists() else create_run(root, config, run_id)
    stop = StopRequest(run.path) if stop_at is None else StopAt(run, stop_at)
    return run, train_run(run.path, stop)


def curve(run: Run) -> list[tuple[Any, ...]]:
    """What must be equal bit for bit: everything logged but the clock."""
    rows = [json.loads(line) for line in (run.path / METRICS).read_text().splitlines()]
    return [tuple((k, v) for k, v in row.items() if not k.startswith(("time", "perf", "mem"))) for row in rows]


def final_weights(run: Run) -> dict[str, torch.Tensor]:
    return ck.load_checkpoint(run.checkpoints()[-1]).model.state_dict()


def test_a_run_learns_and_writes_what_the_contract_says(make_config: Make, runs_dir: Path) -> None:
    run, code = train(runs_dir, make_config(**{"train.steps": 40, "train.sample_every": 20}), "a")
    assert code == 0
    assert run.status().state == "finished"
    assert run.status().step == 40
    frame = read_metrics(run.path)
    assert frame["step"].tolist() == list(range(1, 41))
    assert {"time_s", "tokens", "flops", "loss/train", "loss/val", "bpb/val", "ppl/val", "lr", "grad_norm"} <= set(
        frame
    )
    assert {"perf/tokens_per_s", "mem/peak_bytes"} <= set(frame)
    assert frame["loss/train"].iloc[-5:].mean() < frame["loss/train"].iloc[:3].mean() - 1
    assert frame["tokens"].iloc[-1] == 40 * 4 * 32
    kinds = [e["kind"] for e in read_events(run.path)]
    assert kinds[0] == "start"
    assert kinds[-1] == "finish"
    assert {"eval", "sample", "checkpoint"} <= set(kinds)
    assert [p.name for p in run.checkpoints()] == [ck.checkpoint_name(s) for s in (10, 20, 30, 40)]


def test_the_checkpoint_tells_its_story(make_config: Make, runs_dir: Path) -> None:
    run, _ = train(runs_dir, make_config(), "a")
    info = ck.describe(run.checkpoints()[-1])
    opened = ck.load_checkpoint(info.path)
    m = info.metadata
    assert m["params"] == sum(p.numel() for p in opened.model.parameters())
    assert m["tokens"] == 20 * 4 * 32
    assert m["recent_steps"] == list(range(1, 21))
    assert m["recent_losses"] == read_metrics(run.path)["loss/train"].tolist()
    assert m["data_fingerprint"] == Run(run.path).facts["data"]["fingerprint"]
    from dgsgpt.data.prepare import prepare

    again = evaluate(opened.model, prepare(run.config.data, 32), block_size=32)
    assert again.loss == pytest.approx(m["whole_split_eval"]["loss"], rel=1e-6)


@pytest.mark.parametrize("feature", FEATURES)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(make_config: Make, runs_dir: Path, feature: str) -> None:
    config = make_config(**FEATURES[feature])
    whole, _ = train(runs_dir, config, "whole")
    parts, code = train(runs_dir, config, "parts", stop_at=7)
    assert code == 143
    assert parts.status().state == "stopped"
    assert "asked to stop" in parts.status().message
    parts, code = train(runs_dir, config, "parts")
    assert code == 0
    assert curve(parts) == curve(whole)
    expected = final_weights(whole)
    assert all(torch.equal(v, expected[k]) for k, v in final_weights(parts).items())


def test_a_crash_after_a_checkpoint_loses_only_what_came_after(make_config: Make, runs_dir: Path) -> None:
    config = make_config(**{"model.dropout": 0.1})
    whole, _ = train(runs_dir, config, "whole")
    crashed, _ = train(runs_dir, config, "crashed", stop_at=15)
    ck.discard(crashed.checkpoints()[-1])  # as if it had been killed at step 15, saved at 10
    with (crashed.path / METRICS).open("a") as f:
        f.write('{"step": 16, "loss/tr')  # and cut in the middle of a line
    train(runs_dir, config, "crashed")
    assert curve(crashed) == curve(whole)
    assert [e["step"] for e in read_events(crashed.path, ("resume",))] == [10]


def test_a_stop_before_the_first_step_saves_no_half_run(make_config: Make, runs_dir: Path) -> None:
    run, code = train(runs_dir, make_config(), "a", stop_at=0)
    assert code == 143
    assert run.status().state == "stopped"
    assert run.checkpoints() == []


def test_changed_data_refuses_the_resume(make_config: Make, runs_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("one two three four.\n" * 200)
    config = make_config(**{"data.corpus": str(text)})
    run, _ = train(runs_dir, config, "a", stop_at=5)
    text.write_text("five six seven eight.\n" * 200)
    _, code = train(runs_dir, config, "a")
    assert code == 2
    assert run.status().state == "failed"
    assert "put the old text back" in str(run.status().error)
    assert len(run.checkpoints()) == 1


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "empty"), (b"ab\x00cd" * 99, "binary"), (b"short", "shorter|needs|too short")]
)
def test_bad_text_fails_the_run_in_one_line(
    make_config: Make, runs_dir: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    run, code = train(runs_dir, make_config(**{"data.corpus": str(path)}), "a")
    assert code == 2
    error = str(run.status().error)
    assert any(word in error for word in message.split("|")), error
    assert "\n" not in error


def test_a_bug_keeps_its_traceback_and_fails_the_run(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dgsgpt.train.session.build_optimizer", lambda *a: 1 / 0)
    run, code = train(runs_dir, make_config(), "a")
    assert code == 1
    assert run.status().error == "ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err


def test_out_of_memory_becomes_advice(make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.12 GiB.")

    monkeypatch.setattr("dgsgpt.train.session.build_optimizer", exhausted)
    run, _ = train(runs_dir, make_config(), "a")
    assert "out of memory: the plan says" in str(run.status().error)
    assert "train.micro_batch_size=4" in str(run.status().error)


def test_old_checkpoints_go_but_the_best_stays(make_config: Make, runs_dir: Path) -> None:
    config = make_config(**{"train.steps": 60, "train.keep_last": 2, "train.lr": 0.05})
    run, _ = train(runs_dir, config, "a")
    infos = ck.list_checkpoints(run)
    evals = {e["step"]: e["loss"] for e in read_events(run.path, ("eval",)) if not e["whole_split"]}
    best = min(evals, key=lambda s: evals[s])
    assert {i.step for i in infos} == {50, 60, best}


def test_only_one_trainer_works_on_a_run(make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    run = create_run(runs_dir, make_config(), "a")
    before = files.read_json(run.path / "status.json")
    monkeypatch.setattr("dgsgpt.train.session.LOCK_TIMEOUT_S", 0.1)
    with FileLock(run.path / ".trainer.lock"):
        assert train_run(run.path, StopRequest(run.path)) == 2
    assert files.read_json(run.path / "status.json") == before
