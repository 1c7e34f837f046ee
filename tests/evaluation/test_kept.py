"""Evaluations kept beside checkpoints: what is written, what is read of damaged files, how they are sorted."""

from __future__ import annotations

import json
import multiprocessing
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgsgpt import files
from dgsgpt.config import build_config
from dgsgpt.errors import RunError
from dgsgpt.evaluation import Evaluation, kept
from dgsgpt.evaluation.breakdown import Group, Passage
from dgsgpt.evaluation.report import Report
from dgsgpt.runs import Run, create_run
from tests import checkpoint_factory

REPORT = Report(
    evaluation=Evaluation(2.5, 12.18, 1.8, 999, 2000, 32, 16),
    context=32,
    stride=16,
    max_tokens=None,
    forward_tokens=1998,
    accuracy=0.4,
    calibration_error=0.02,
    by_position=(Group(1, 1, 32, 3.0, 0.1), Group(2, 32, 967, 2.4, None)),
    by_frequency=(Group(0, 9, 999, 2.5, 0.05),),
    frequency_rule="the text itself",
    hardest=(Passage(0, 6, 9.0, "secret"),),
    easiest=(),
    calibration=(),
    text_sha256="ab" * 32,
    text_bytes=2001,
)
GIVEN = {"text_name": "letters.txt", "tokenizer_sha256": "cd" * 32}


def with_bpb(bpb: float, **changes: Any) -> Report:
    return replace(REPORT, evaluation=replace(REPORT.evaluation, bpb=bpb), **changes)


@pytest.fixture
def checkpoint(make_run: Callable[[str], Run]) -> Path:
    return checkpoint_factory.save(make_run("a"), 5)


@pytest.fixture
def make_run(runs_dir: Path) -> Callable[[str], Run]:
    model = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32}
    config = build_config({"data": {"corpus": "austen", "tokenizer": {"kind": "byte"}}, "model": model})
    return lambda run_id: create_run(runs_dir, config, run_id, ["test"])


def test_what_is_kept_comes_back(checkpoint: Path) -> None:
    path = kept.keep(checkpoint, REPORT, **GIVEN, rope_scaling="yarn", command=["dgsgpt", "eval", "a"])
    assert path == checkpoint.parent.parent / "evaluations.jsonl"
    kept.keep(checkpoint, with_bpb(1.7), **GIVEN)
    run = kept.run_of(checkpoint)
    assert run is not None
    (first, second), damaged = kept.read(run)
    assert damaged == 0
    assert (first.checkpoint, first.step, first.path) == ("step_00000005", 5, checkpoint)
    assert (first.bpb, second.bpb, first.result("tokens"), first.text_name) == (1.8, 1.7, 999, "letters.txt")
    assert first.record["text"] == {"name": "letters.txt", "sha256": "ab" * 32, "bytes": 2001}
    assert (first.record["context"], first.record["stride"], first.record["rope_scaling"]) == (32, 16, "yarn")
    assert first.record["tokenizer_sha256"] == "cd" * 32
    assert first.record["command"] == ["dgsgpt", "eval", "a"]
    assert first.record["dgsgpt_version"]
    assert first.record["breakdown"]["by_position"][0] == {
        "low": 1, "high": 1, "tokens": 32, "loss": 3.0, "standard_error": 0.1,
    }  # fmt: skip
    assert first.time <= second.time
    assert "secret" not in path.read_text()  # passages would keep parts of a private text
    assert first.to_dict()["state"] == "whole"


def test_a_checkpoint_outside_of_a_run_is_not_written_to(checkpoint: Path, tmp_path: Path) -> None:
    alone = tmp_path / "step_00000005"
    shutil.copytree(checkpoint, alone)
    before = sorted(tmp_path.rglob("*"))
    assert kept.keep(alone, REPORT, **GIVEN) is None
    assert sorted(tmp_path.rglob("*")) == before


def test_figures_that_are_not_finite_become_null(checkpoint: Path) -> None:
    kept.keep(checkpoint, with_bpb(float("nan")), **GIVEN)
    kept.keep(checkpoint, replace(REPORT, evaluation=replace(REPORT.evaluation, ppl=float("inf"))), **GIVEN)
    found, _ = kept.read(Run(checkpoint.parent.parent))
    assert [one.bpb for one in found] == [None, 1.8]
    assert found[1].result("ppl") is None


def test_hostile_names_are_kept_as_one_printable_line(checkpoint: Path) -> None:
    kept.keep(checkpoint, REPORT, text_name="a\n\x1b[31m\udcff" + "x" * 500, tokenizer_sha256="cd" * 32)
    ((one,), _) = kept.read(Run(checkpoint.parent.parent))
    assert one.text_name.isprintable()
    assert len(one.text_name) == 200


# ---------------------------------------------------------------- damage
@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 50,
        b"{}",
        b"[1]",
        b"{" * 5000,
        b'{"format_version": 1, "time": NaN}',
        b"x" * 1_100_000,
        "{'checkpoint': …}".encode(),
        b"\xff\xfe",
    ],
    ids=range(8),
)
def test_a_damaged_line_is_left_out_and_counted(checkpoint: Path, line: bytes) -> None:
    path = kept.keep(checkpoint, REPORT, **GIVEN)
    assert path is not None
    with path.open("ab") as f:
        f.write(line + b"\n\n")
    kept.keep(checkpoint, REPORT, **GIVEN)
    found, damaged = kept.read(Run(path.parent))
    assert (len(found), damaged) == (2, 1)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("format_version", 2), ("checkpoint", "../../x"), ("checkpoint", None), ("time", "now"), ("time", 10**400),
        ("context", "32"), ("stride", True), ("text", "a"), ("results", None), ("tokenizer_sha256", 5),
    ],
)  # fmt: skip
def test_a_record_of_another_shape_is_left_out(checkpoint: Path, where: str, value: Any) -> None:
    path = kept.keep(checkpoint, REPORT, **GIVEN)
    assert path is not None
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, where: value}) + "\n")
    assert kept.read(Run(path.parent)) == ([], 1)


def test_figures_of_other_kinds_are_none(checkpoint: Path) -> None:
    path = kept.keep(checkpoint, REPORT, **GIVEN)
    assert path is not None
    record = json.loads(path.read_text())
    record["results"] = {"bpb": "low", "loss": 10**400, "ppl": True}
    path.write_text(json.dumps(record) + "\n")
    ((one,), _) = kept.read(Run(path.parent))
    assert [one.result(name) for name in ("bpb", "loss", "ppl", "tokens")] == [None] * 4
    assert kept.list_kept([Run(path.parent)])[0] == [one]


def test_a_torn_last_line_costs_itself_only(checkpoint: Path) -> None:
    path = kept.keep(checkpoint, REPORT, **GIVEN)
    assert path is not None
    whole = path.read_bytes()
    for cut in (1, 40, len(whole) - 1):
        path.write_bytes(whole + whole[:cut])
        assert len(kept.read(Run(path.parent))[0]) == 1
        kept.keep(checkpoint, with_bpb(1.5), **GIVEN)
        found, damaged = kept.read(Run(path.parent))
        # Cut before its line end, a line is whole once it has one again.
        assert [one.bpb for one in found] == ([1.8, 1.8, 1.5] if cut == len(whole) - 1 else [1.8, 1.5])
        assert damaged == (0 if cut == len(whole) - 1 else 1)


def _keep_many(checkpoint: Path, bpb: float) -> None:
    for _ in range(20):
        kept.keep(checkpoint, with_bpb(bpb), **GIVEN)


def test_processes_that_keep_at_once_lose_nothing(checkpoint: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_keep_many, args=(checkpoint, float(i))) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    found, damaged = kept.read(Run(checkpoint.parent.parent))
    assert damaged == 0
    assert sorted(one.bpb or 0 for one in found) == [0.0] * 20 + [1.0] * 20 + [2.0] * 20


def _keep_on_a_full_disk(checkpoint: Path, answer: Any) -> None:
    path = checkpoint.parent.parent / kept.FILE
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        kept.keep(checkpoint, with_bpb(1.0), **GIVEN)
    except RunError as e:
        answer.put(str(e))


def test_a_full_disk_is_said_and_costs_nothing_else(checkpoint: Path) -> None:
    path = kept.keep(checkpoint, REPORT, **GIVEN)
    assert path is not None
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    worker = context.Process(target=_keep_on_a_full_disk, args=(checkpoint, answer))
    worker.start()
    message = answer.get(timeout=30)
    worker.join(30)
    assert "the evaluation cannot be kept" in message
    assert "free space" in message
    assert [one.bpb for one in kept.read(Run(path.parent))[0]] == [1.8]


def test_a_folder_in_the_place_of_the_file_is_said(checkpoint: Path) -> None:
    (checkpoint.parent.parent / kept.FILE).mkdir()
    with pytest.raises(RunError, match="cannot be kept"):
        kept.keep(checkpoint, REPORT, **GIVEN)
    with pytest.raises(RunError, match="cannot be read"):
        kept.read(Run(checkpoint.parent.parent))


# ---------------------------------------------------------------- listing
def test_the_best_of_each_text_comes_first(make_run: Callable[[str], Run]) -> None:
    a, b = make_run("a"), make_run("b")
    of_a, of_b = checkpoint_factory.save(a, 1), checkpoint_factory.save(b, 2, "abc")
    other = {"text_name": "other", "tokenizer_sha256": "ee" * 32}
    kept.keep(of_a, with_bpb(1.9), **GIVEN)
    kept.keep(of_b, with_bpb(1.5, text_sha256="00" * 32), **other)
    kept.keep(of_b, with_bpb(1.4), **other)  # another tokenizer, the same text
    kept.keep(of_a, with_bpb(float("nan")), **GIVEN)
    kept.keep(of_a, with_bpb(0.1, max_tokens=100), **GIVEN)
    found, damaged = kept.list_kept([a, b])
    assert damaged == 0
    assert [one.bpb for one in found] == [0.1, 1.4, 1.9, None, 1.5]
    assert len({one.comparable for one in found}) == 3
    assert [one.bpb for one in kept.list_kept([a, b], text_sha256="00" * 32)[0]] == [1.5]
    assert {one.run.id for one in kept.list_kept([a, b], checkpoint="step_00000002")[0]} == {"b"}
    assert kept.list_kept([]) == ([], 0)


def test_a_checkpoint_that_changed_or_went_is_told(checkpoint: Path) -> None:
    kept.keep(checkpoint, REPORT, **GIVEN)
    run = Run(checkpoint.parent.parent)
    ((one,), _) = kept.read(run)
    assert one.state == "whole"
    manifest = files.read_json(checkpoint / "manifest.json")
    assert manifest is not None
    manifest["files"]["model.safetensors"]["sha256"] = "0" * 64
    files.write_json(checkpoint / "manifest.json", manifest)
    assert one.state == "replaced"
    (checkpoint / "manifest.json").write_text("{")
    assert one.state == "damaged"
    shutil.rmtree(checkpoint)
    assert one.state == "gone"
