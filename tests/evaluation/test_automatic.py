"""What trainers find by themselves, in one list with what people ask for."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dgsgpt import files
from dgsgpt.checkpoint import load_checkpoint
from dgsgpt.config import RunConfig
from dgsgpt.data import prepare
from dgsgpt.data.dataset import Dataset
from dgsgpt.evaluation import automatic, kept, validation_text
from dgsgpt.evaluation.report import evaluate_fully
from dgsgpt.metrics import EVENTS, MetricsWriter
from dgsgpt.runs import Run, create_run
from tests import checkpoint_factory

FIGURES = {"loss": 2.5, "ppl": 12.2, "bpb": 1.8, "tokens": 512, "bytes": 512, "context": 32, "stride": 32}


@pytest.fixture
def dataset(make_config: Callable[..., RunConfig]) -> Dataset:
    return prepare.prepare(make_config().data, 32)


@pytest.fixture
def trained(runs_dir: Path, make_config: Callable[..., RunConfig], dataset: Dataset) -> Callable[..., Run]:
    """`trained("a", (10, False, 1.8), …)`: a run with evaluations of step, whole split or not, bits per byte."""

    def make(run_id: str, *evaluations: tuple[int, bool, float | None]) -> Run:
        run = create_run(runs_dir, make_config(), run_id, ["test"])
        facts = files.read_json(run.path / "run.json") or {}
        sha256 = dataset.meta["tokenizer_sha256"]
        data = {
            "dataset": dataset.id,
            "fingerprint": dataset.fingerprint,
            "tokenizer_sha256": sha256,
            "val_bytes": dataset.val_bytes,
        }
        files.write_json(run.path / "run.json", {**facts, "data": data})
        for step, whole, bpb in evaluations:
            MetricsWriter(run.path).event("eval", step, whole_split=whole, **{**FIGURES, "bpb": bpb})
        return Run(run.path)

    return make


@pytest.mark.parametrize("tokenizer", [{"kind": "byte"}, {"kind": "bpe", "vocab_size": 300}, {"kind": "char"}])
def test_the_text_is_told_by_the_hash_of_what_eval_judges(
    make_config: Callable[..., RunConfig], tokenizer: dict[str, Any]
) -> None:
    data = make_config(**{"data.tokenizer": tokenizer}).data
    made = prepare.prepare(data, 32)
    text = validation_text(data.corpus, data.val_fraction)
    assert automatic.text_sha256(made.fingerprint, made.id) == hashlib.sha256(text.encode()).hexdigest()


def test_the_whole_split_stands_beside_an_evaluation_that_was_asked_for(
    trained: Callable[..., Run], make_config: Callable[..., RunConfig]
) -> None:
    run, data = trained("a", (10, False, 1.9), (20, False, 1.7), (20, True, 1.75)), make_config().data
    opened = load_checkpoint(checkpoint_factory.save(run, 20))
    for most in (None, 512):
        report = evaluate_fully(
            opened.model, opened.tokenizer, validation_text(data.corpus, data.val_fraction), max_tokens=most
        )
        kept.keep(opened.path, report, text_name="mine", tokenizer_sha256=opened.tokenizer.sha256)
    found, damaged = kept.list_kept([run], more=automatic.of_run(run))
    assert damaged == 0
    groups = {(one.automatic, one.record["max_tokens"]): one.comparable for one in found}
    assert groups[10, None] == groups[None, None]
    assert groups[10, 512] == groups[None, 512]
    assert groups[10, None] != groups[10, 512]
    assert [(one.step, one.bpb) for one in automatic.of_run(run)] == [(10, 1.9), (20, 1.7), (20, 1.75)]


def test_only_what_is_at_checkpoints_is_listed_and_the_rest_is_said_not_to_be_saved(
    trained: Callable[..., Run],
) -> None:
    run = trained("a", (10, False, 1.9), (20, False, 1.7))
    checkpoint_factory.save(run, 20)
    found = automatic.of_run(run)
    assert [one.state for one in found] == ["not saved", "whole"]
    assert [one.step for one in automatic.saved(found)] == [20]


def test_the_latest_of_a_step_counts_and_damaged_or_infinite_ones_do_not(trained: Callable[..., Run]) -> None:
    run = trained("a", (10, False, 1.9), (20, False, None), (10, False, 1.8))
    with (run.path / EVENTS).open("a") as f:
        f.write('{"kind": "eval", "step": 30}\n{torn\n{"kind": "eval", "step": -1, "time": 1}\n')
    assert [(one.step, one.bpb) for one in automatic.of_run(run)] == [(10, 1.8)]


def test_without_its_dataset_a_run_compares_with_those_of_the_same(
    trained: Callable[..., Run], dataset: Dataset
) -> None:
    a, b = trained("a", (10, True, 1.9)), trained("b", (10, True, 1.8))
    shutil.rmtree(dataset.path)
    (one,), (other,) = automatic.of_run(a), automatic.of_run(b)
    assert one.comparable == other.comparable == (dataset.fingerprint,)


@pytest.mark.parametrize("name", [None, 5, "../x", "another"])
def test_a_dataset_that_is_not_the_one_of_the_run_is_not_read(dataset: Dataset, name: object) -> None:
    assert automatic.text_sha256(dataset.fingerprint, name) == dataset.fingerprint
    assert automatic.text_sha256("f" * 64, dataset.id) == "f" * 64


def test_runs_that_have_not_begun_or_are_damaged_have_none(
    runs_dir: Path, make_config: Callable[..., RunConfig]
) -> None:
    run = create_run(runs_dir, make_config(), "new", ["test"])
    assert automatic.of_run(run) == []
    (run.path / "config.yaml").write_text("{")
    assert automatic.of_runs([Run(run.path)]) == []
