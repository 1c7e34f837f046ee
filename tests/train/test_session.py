"""Whole runs in this process: what they write, how they stop, and that resuming changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgsgpt import checkpoint as ck
from dgsgpt import files, launch
from dgsgpt.config import RunConfig
from dgsgpt.data.prepare import resolve
from dgsgpt.errors import RunError
from dgsgpt.evaluation import evaluate
from dgsgpt.metrics import METRICS, read_events, read_metrics
from dgsgpt.runs import Run, create_run
from dgsgpt.train.report import Reporter, StopRequest
from dgsgpt.train.schedule import learning_rate
from dgsgpt.train.session import Session, train_run
from dgsgpt.train.stepper import Stepper

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
    "fp16": {"train.precision": "fp16"},
    "muon, n-grams": {"train.optimizer": "muon", "model.ngram": {"max_order": 3, "rows": 512}},
    "weights in bf16, adafactor": {
        "train.weight_precision": "bf16",
        "train.optimizer": "adafactor",
        "model.moe": {"n_expert": 4},
    },
    "update in the backward pass": {"train.optimizer_in_backward": True, "train.grad_clip": None},
    "documents": {"data.document_separator": ".\n", "model.dropout": 0.1},
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
    return [tuple((k, v) for k, v in row.items() if not k.startswith(("time", "perf", "mem", "sys"))) for row in rows]


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
    assert re.search(r"is of another recipe .*data fingerprint: '\w{12}' -> '\w{12}'.*--force", str(run.status().error))
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
    monkeypatch.setattr("dgsgpt.train.setup.build_updates", lambda *a: 1 / 0)
    run, code = train(runs_dir, make_config(), "a")
    assert code == 1
    assert run.status().error == "ZeroDivisionError: division by zero"
    assert "Traceback" in capsys.readouterr().err


def test_out_of_memory_becomes_advice(make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.12 GiB.")

    monkeypatch.setattr("dgsgpt.train.setup.build_updates", exhausted)
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


# ---------------------------------------------------------------- what has changed since
def test_a_changed_recipe_is_refused_until_it_is_allowed(make_config: Make, runs_dir: Path) -> None:
    run, _ = train(runs_dir, make_config(**{"train.steps": 20}), "a", stop_at=5)
    (run.path / "config.yaml").write_text(make_config(**{"train.lr": 1e-3, "train.weight_decay": 0.0}).to_yaml())
    _, code = train(runs_dir, make_config(), "a")
    assert code == 2
    error = str(run.status().error)
    assert "train.lr: 0.003 -> 0.001" in error
    assert "train.weight_decay: 0.1 -> 0.0" in error
    assert "dgsgpt resume a --force" in error
    changed = launch.change_recipe(Run(run.path), force=True)
    assert train_run(changed.path, StopRequest(changed.path)) == 0
    (event,) = read_events(run.path, ("changed",))
    assert event["settings"] == {"train.lr": [0.003, 0.001], "train.weight_decay": [0.1, 0.0]}


def test_a_text_with_new_characters_is_said_to_have_changed(make_config: Make, runs_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("one two three four.\n" * 200)
    run, _ = train(runs_dir, resolve(make_config(**{"data.corpus": str(text), "data.tokenizer.kind": "char"})), "a", 5)
    text.write_text("five six seven eight nine!\n" * 200)
    assert train(runs_dir, make_config(), "a")[1] == 2
    assert "has changed since the run began" in str(run.status().error)


def test_force_allows_one_change_only(make_config: Make, runs_dir: Path) -> None:
    run, _ = train(runs_dir, make_config(), "a", stop_at=5)
    (run.path / "config.yaml").write_text(make_config(**{"train.lr": 1e-3}).to_yaml())
    launch.change_recipe(Run(run.path), force=True)
    assert train(runs_dir, make_config(), "a", stop_at=2)[1] == 143
    (run.path / "config.yaml").write_text(make_config(**{"train.lr": 2e-3}).to_yaml())
    assert train(runs_dir, make_config(), "a")[1] == 2
    assert "0.002" in str(run.status().error)


def test_a_finished_run_goes_on_when_it_is_given_more_steps(make_config: Make, runs_dir: Path) -> None:
    run, _ = train(runs_dir, make_config(**{"train.steps": 10}), "a")
    with pytest.raises(RunError, match=r"finished all 10 steps; `dgsgpt resume a --set train\.steps=N`"):
        launch.check_startable(Run(run.path))
    longer = launch.change_recipe(Run(run.path), ["train.steps=15"])
    launch.check_startable(longer)
    assert train_run(longer.path, StopRequest(longer.path)) == 0
    assert Run(run.path).status().step == 15
    assert Run(run.path).config.train.steps == 15


def test_another_machine_is_warned_of(make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = train(runs_dir, make_config(), "a", stop_at=5)
    monkeypatch.setattr("torch.get_num_threads", lambda: 17)
    train(runs_dir, make_config(), "a")
    (warning,) = [e for e in read_events(run.path, ("health",)) if e.get("name") == "environment"]
    assert re.search(r"not bit-exact from here on: threads \d+ -> 17", warning["message"])


def test_what_was_settled_stays_settled(make_config: Make, runs_dir: Path) -> None:
    run, _ = train(runs_dir, make_config(), "a", stop_at=5)
    settled = Run(run.path).facts["settled"]
    assert (settled["precision"], settled["compile"]) == ("fp32", "off")
    assert (settled["micro_batch_size"], settled["grad_accum_steps"]) == (4, 1)
    assert all("too short" in why or "emulate" in why for why in settled["why"])
    facts = files.read_json(run.path / "run.json") or {}
    files.write_json(run.path / "run.json", {**facts, "settled": {**settled, "precision": "bf16"}})
    train(runs_dir, make_config(), "a")
    described = ck.describe(run.checkpoints()[-1]).metadata
    assert described["settled"]["precision"] == "bf16"


# ---------------------------------------------------------------- steps that are not finite
def poison(monkeypatch: pytest.MonkeyPatch, bad: set[int], once: bool = False) -> None:
    """Make the loss of these steps NaN; with `once`, only the first time each is made."""
    accumulate = Stepper._accumulate

    def poisoned(self: Stepper, index: int) -> Any:
        loss, router = accumulate(self, index)
        if index + 1 in bad:
            if once:
                bad.discard(index + 1)
            return loss * float("nan"), router
        return loss, router

    monkeypatch.setattr(Stepper, "_accumulate", poisoned)


def health(run: Run) -> list[tuple[int, str]]:
    return [(e["step"], e.get("name", "")) for e in read_events(run.path, ("health",))]


def test_a_bad_step_is_skipped_and_told(make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {7, 9})
    run, code = train(runs_dir, make_config(), "a")
    assert code == 0
    assert [h for h in health(run) if h[1] == "nonfinite"] == [(7, "nonfinite"), (9, "nonfinite")]
    frame = read_metrics(run.path)
    assert frame.loc[frame["step"] == 7, "loss/train"].isna().all()
    assert frame["loss/train"].iloc[-1] < frame["loss/train"].iloc[0]


def test_a_bad_step_rolls_back_at_half_the_rate(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {13}, once=True)
    run, code = train(runs_dir, make_config(**{"train.on_nonfinite": "rollback"}), "a")
    assert code == 0
    assert (10, "rollback") in health(run)
    frame = read_metrics(run.path)
    assert frame["step"].tolist() == list(range(1, 21))
    usual = [learning_rate(s - 1, run.config.train) for s in range(1, 21)]
    assert frame["lr"].tolist()[:10] == pytest.approx(usual[:10])
    assert frame["lr"].tolist()[10:] == pytest.approx([rate / 2 for rate in usual[10:]])
    assert frame["loss/train"].notna().all()


def test_the_lower_rate_survives_a_resume(make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, {13}, once=True)
    run, _ = train(runs_dir, make_config(**{"train.on_nonfinite": "rollback"}), "a", stop_at=16)
    train(runs_dir, make_config(), "a")
    assert read_metrics(run.path)["lr"].iloc[-1] == pytest.approx(learning_rate(19, run.config.train) / 2)


@pytest.mark.parametrize(("policy", "bad", "message"), [
    ("stop", {5}, "not finite at step 5, the weights were left as they were; lower train.lr=0.003"),
    ("skip", set(range(3, 20)), "not finite at step 12"),
    ("rollback", set(range(13, 20)), "also after going back 5 times"),
])  # fmt: skip
def test_a_run_that_cannot_be_mended_ends(
    make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, policy: str, bad: set[int], message: str
) -> None:
    poison(monkeypatch, bad)
    run, code = train(runs_dir, make_config(**{"train.on_nonfinite": policy}), "a")
    assert code == 2
    assert message in str(run.status().error)


# ---------------------------------------------------------------- ending early, pausing, saving
def test_a_run_ends_when_the_target_is_reached(make_config: Make, runs_dir: Path) -> None:
    whole, _ = train(runs_dir, make_config(**{"train.eval_every": 5}), "whole")
    losses = {e["step"]: e["loss"] for e in read_events(whole.path, ("eval",)) if not e["whole_split"]}
    target = losses[15] + 1e-6
    run, code = train(runs_dir, make_config(**{"train.eval_every": 5, "train.target_loss": target}), "a")
    assert code == 0
    assert run.status().state == "finished"
    assert run.status().step == 15
    assert "has reached the target" in run.status().message
    assert run.checkpoints()[-1].name == ck.checkpoint_name(15)


def test_a_run_ends_when_validation_stops_improving(make_config: Make, runs_dir: Path) -> None:
    config = make_config(**{"train.steps": 200, "train.eval_every": 2, "train.lr": 1e-9, "train.early_stop_evals": 3})
    run, code = train(runs_dir, config, "a")
    assert code == 0
    assert run.status().step < 200
    losses = [e["loss"] for e in read_events(run.path, ("eval",)) if not e["whole_split"]]
    assert min(losses[-3:]) >= min(losses[:-3])
    assert "in 3 validations" in run.status().message


class SaveAndPause(StopRequest):
    """Asks for a checkpoint while step 3 is made; pauses after step 6 for a few looks."""

    def __init__(self, run: Run, session_step: Callable[[], int]) -> None:
        super().__init__(run.path)
        self._step, self.looks, self.seen = session_step, 0, []  # type: ignore[var-annotated]
        self._run, self._asked = run, False

    def paused(self) -> bool:
        if self._step() == 6 and self.looks < 3:
            self.looks += 1
            self.seen.append((self._run.status().paused, [p.name for p in self._run.checkpoints()]))
            return True
        return False

    def save_asked(self) -> bool:
        asked = self._step() == 2 and not self._asked
        self._asked = self._asked or asked
        return asked


def test_pausing_and_saving_change_no_number(make_config: Make, runs_dir: Path) -> None:
    config = make_config(**{"model.dropout": 0.1, "train.checkpoint_every": 0})
    whole, _ = train(runs_dir, config, "whole")
    run = create_run(runs_dir, config, "a")
    reporter = Reporter(run.path, max_steps=20)
    stop = SaveAndPause(run, lambda: session.progress.step)
    session = Session(run, reporter, stop)
    assert session.run() == 0
    assert stop.looks == 3
    assert stop.seen[-1] == (True, [ck.checkpoint_name(3), ck.checkpoint_name(6)])
    assert not run.status().paused
    assert [r[:2] for r in curve(run)] == [r[:2] for r in curve(whole)]
    losses = [dict(r)["loss/train"] for r in curve(run)]
    assert losses == [dict(r)["loss/train"] for r in curve(whole)]
    kinds = [e["kind"] for e in read_events(run.path, ("pause", "continue"))]
    assert kinds == ["pause", "continue"]
