"""Forks and fine-tunings: what they take along, what they refuse, and that their origin may go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgsgpt import branch, files, launch
from dgsgpt import checkpoint as ck
from dgsgpt.config import RunConfig, build_config
from dgsgpt.data.prepare import prepare, resolve
from dgsgpt.errors import CheckpointError, ConfigError, DataError
from dgsgpt.metrics import read_events, read_metrics
from dgsgpt.runs import Run, create_run
from dgsgpt.train.report import StopRequest
from dgsgpt.train.session import train_run
from tests.train.test_session import FEATURES, curve, train

Make = Callable[..., RunConfig]
BPE = {"data.tokenizer": {"kind": "bpe", "vocab_size": 300}}


@pytest.fixture
def trained(make_config: Make, runs_dir: Path) -> Run:
    run, code = train(runs_dir, make_config(**BPE, **{"model.dropout": 0.1}), "origin")
    assert code == 0
    return run


def go(run: Run) -> int:
    return train_run(run.path, StopRequest(run.path))


def fork(root: Path, path: Path, overrides: list[str] | None = None, run_id: str | None = None) -> Run:
    return branch.fork(root, path, branch.fork_config(path, overrides or []), run_id)


def same_files(a: Path, b: Path) -> bool:
    return {p.name: ck.hash_file(p) for p in a.iterdir()} == {p.name: ck.hash_file(p) for p in b.iterdir()}


# ---------------------------------------------------------------- forks
def test_an_unchanged_fork_goes_on_bit_for_bit_as_its_origin(trained: Run, runs_dir: Path) -> None:
    forked = fork(runs_dir, trained.checkpoints()[0], run_id="twin")
    assert forked.facts["parent"] == {"run": "origin", "step": 10, "kind": "fork"}
    assert list(read_metrics(forked.path)["step"]) == list(range(1, 11))
    assert go(forked) == 0
    ours, theirs = read_metrics(forked.path), read_metrics(trained.path)
    for column in ("step", "loss/train", "loss/val", "lr", "grad_norm", "tokens"):
        assert ours[column].equals(theirs[column]), column
    ends = [ck.load_tensors(run.checkpoints()[-1] / ck.OPTIMIZER) for run in (forked, trained)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.parametrize(
    "name",
    [
        "muon, n-grams",
        "weights in bf16, adafactor",
        "fp16",
        "accumulation, checkpointing",
        "expert biases, both windows, shortcuts",
    ],
)
def test_forks_of_every_kind_of_run_go_on_bit_for_bit(name: str, make_config: Make, runs_dir: Path) -> None:
    origin, code = train(runs_dir, make_config(**FEATURES[name]), "origin")
    assert code == 0
    again = tuned(origin, make_config(**FEATURES[name], **{"train.seed": 5}), runs_dir)  # of a run that was tuned, too
    assert go(again) == 0
    for run in (origin, Run(again.path)):
        forked = fork(runs_dir, run.checkpoints()[0], run_id=f"{run.id}-twin")
        assert go(forked) == 0
        assert curve(forked) == curve(run)
        assert same_tensors(forked.checkpoints()[-1], run.checkpoints()[-1])


def same_tensors(a: Path, b: Path) -> bool:
    return all(ck.hash_file(a / name) == ck.hash_file(b / name) for name in (ck.MODEL, ck.OPTIMIZER))


def test_a_fork_goes_on_with_what_was_changed(trained: Run, runs_dir: Path) -> None:
    forked = fork(runs_dir, trained.checkpoints()[-1], ["train.steps=25", "train.lr=0.0001", "model.dropout=0"])
    assert go(forked) == 0
    metrics = read_metrics(forked.path)
    assert int(metrics["step"].max()) == 25
    assert float(metrics["lr"].iloc[-1]) < 1.1e-4
    assert ck.load_config(forked.checkpoints()[-1] / ck.CONFIG).train.lr == 1e-4
    changed = read_events(forked.path, ("changed",))[0]["settings"]
    assert set(changed) == {"train.steps", "train.lr", "model.dropout"}


def test_a_fork_on_another_text_keeps_the_tokenizer_and_outlives_its_origin(
    trained: Run, runs_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("an entirely other text, about ships and the sea.\n" * 200, encoding="utf-8")
    forked = fork(runs_dir, trained.checkpoints()[-1], [f"data.corpus={other}", "train.steps=25"])
    shutil.rmtree(trained.path)
    assert go(forked) == 0
    newest = ck.load_checkpoint(forked.checkpoints()[-1])
    assert newest.config.data.tokenizer.file == str(forked.path / branch.BEGIN / ck.TOKENIZER)
    assert (
        newest.metadata["tokenizer_sha256"] == ck.load_checkpoint(forked.checkpoints()[0]).metadata["tokenizer_sha256"]
    )
    assert newest.metadata["step"] == 25


def test_a_loss_on_the_text_before_is_no_mark_to_beat(trained: Run, runs_dir: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(chr(33 + i * i * 7 % 89) for i in range(20_000)), encoding="utf-8")  # hard to learn
    overrides = [f"data.corpus={other}", "train.steps=22", "train.eval_every=1"]
    forked = fork(runs_dir, trained.checkpoints()[-1], overrides)
    assert go(forked) == 0
    before, after = (ck.describe(path) for path in forked.checkpoints())
    assert before.metadata["loss_val"] < after.metadata["loss_val"]
    assert ck.find_checkpoint(forked.id, runs_dir) == after.path, "the best on the text that the fork learns"
    assert (files.read_json(after.path / ck.STATE) or {})["best_val"] >= after.metadata["loss_val"] - 1


@pytest.mark.parametrize("how", ["fork", "fine-tune"])
def test_a_run_whose_making_was_killed_is_not_trained_from_scratch(
    trained: Run, make_config: Make, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def make() -> Run:
        return fork(runs_dir, trained.checkpoints()[0]) if how == "fork" else tuned(trained, make_config(), runs_dir)

    reached, last = 0, 0
    for deadly in range(1, 60):  # killed at each of its changes in turn
        pid = os.fork()
        if pid == 0:
            count = 0

            def counted(real: Callable[..., object], deadly: int = deadly) -> Callable[..., object]:
                def change(*args: object, **options: object) -> object:
                    nonlocal count
                    count += 1
                    if count == deadly:
                        os._exit(9)
                    return real(*args, **options)

                return change

            for module, name in ((os, "link"), (files, "write_atomic"), (files, "append_line"), (os, "mkdir")):
                monkeypatch.setattr(module, name, counted(getattr(module, name)))
            make()
            os._exit(0)
        killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
        made = [p for p in runs_dir.iterdir() if p != trained.path]
        for path in made:
            if killed and (path / "config.yaml").is_file() and (path / "run.json").is_file():
                reached += 1
                assert go(Run(path)) == 2
                assert "delete it and make it again" in (Run(path).status().error or "")
            shutil.rmtree(path)
        last = deadly
        if not killed:
            break
    assert reached > 5
    assert last < 59


def test_a_fork_that_lost_its_checkpoints_does_not_begin_from_scratch(trained: Run, runs_dir: Path) -> None:
    forked = fork(runs_dir, trained.checkpoints()[0])
    lines = len(read_metrics(forked.path))
    shutil.rmtree(forked.checkpoints()[0])
    assert go(forked) == 2
    assert "the fork of origin@10 has no whole checkpoint to go on from" in (Run(forked.path).status().error or "")
    assert len(read_metrics(forked.path)) == lines, "and loses nothing"


def test_a_checkpoint_that_goes_meanwhile_is_no_fork(
    trained: Run, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trained.checkpoints()[0]
    link = os.link

    def after_pruning(source: Path, target: Path) -> None:
        if source.name == ck.MODEL:
            shutil.rmtree(path, ignore_errors=True)
        link(source, target)

    monkeypatch.setattr(os, "link", after_pruning)
    with pytest.raises(CheckpointError, match="was deleted while it was read"):
        fork(runs_dir, path, run_id="no")
    assert not (runs_dir / "no").exists()


def test_two_forks_at_once_get_names_of_their_own(
    trained: Run, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suggest, seen = branch.suggest_run_id, []

    def taken_meanwhile(root: Path, stem: str) -> str:
        seen.append(name := suggest(root, stem))
        if len(seen) == 1:
            (root / name).mkdir()
        return name

    monkeypatch.setattr(branch, "suggest_run_id", taken_meanwhile)
    assert fork(runs_dir, trained.checkpoints()[0]).id == "origin-fork-2"


def test_files_are_linked_and_never_written_into(trained: Run, runs_dir: Path) -> None:
    origin = trained.checkpoints()[0]
    before = {p.name: ck.hash_file(p) for p in origin.iterdir()}
    forked = fork(runs_dir, origin)
    linked = forked.checkpoints()[0] / ck.MODEL
    assert linked.stat().st_ino == (origin / ck.MODEL).stat().st_ino
    go(forked)
    assert {p.name: ck.hash_file(p) for p in origin.iterdir()} == before


def test_a_file_system_without_links_gets_copies(trained: Run, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    forked = fork(runs_dir, trained.checkpoints()[0])
    assert (forked.checkpoints()[0] / ck.MODEL).stat().st_nlink == 1
    assert same_files(forked.checkpoints()[0], trained.checkpoints()[0])


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.n_layer=3", "model.n_layer: 2 -> 3"),
        ("data.tokenizer.kind=byte", "data.tokenizer cannot change"),
        ("train.steps=5", "leaves nothing to do after step 10"),
        ("train.lr=-1", "train.lr=-1"),
        ("train.optimizer=muon", "train.optimizer: 'adamw' -> 'muon': a fork goes on with the optimizer's state"),
    ],
)
def test_a_fork_that_cannot_be_is_refused_and_leaves_nothing(
    trained: Run, runs_dir: Path, override: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told.replace(".", r"\.")):
        fork(runs_dir, trained.checkpoints()[0], [override], "no")
    assert not (runs_dir / "no").exists()


def test_a_damaged_checkpoint_is_not_forked(trained: Run, runs_dir: Path) -> None:
    weights = trained.checkpoints()[0] / ck.MODEL
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        fork(runs_dir, trained.checkpoints()[0])


# ---------------------------------------------------------------- fine-tuning
def tuned(trained: Run, config: RunConfig, runs_dir: Path, *overrides: str) -> Run:
    path = trained.checkpoints()[-1]
    return branch.begin_from(runs_dir, path, resolve(branch.base_config(path, config, overrides)), "tuned")


def test_fine_tuning_begins_with_the_weights_and_a_fresh_optimizer(
    trained: Run, make_config: Make, runs_dir: Path
) -> None:
    run = tuned(trained, make_config(**{"model.n_layer": 5, "train.lr": 1e-9, "train.steps": 10}), runs_dir)
    assert run.config.model == ck.load_config(trained.checkpoints()[-1] / ck.CONFIG).model
    assert run.facts["parent"] == {"run": "origin", "step": 20, "kind": "fine-tune"}
    shutil.rmtree(trained.path)  # the origin may go
    assert go(run) == 0
    begun = ck.load_tensors(run.path / branch.BEGIN / ck.MODEL)
    ended = ck.load_tensors(run.checkpoints()[-1] / ck.MODEL)
    assert all(torch.allclose(value, ended[name], atol=1e-6) for name, value in begun.items())
    first = float(read_metrics(run.path)["loss/train"].iloc[0])
    assert first < 4.5, "a fresh model begins at ln 300 = 5.7"
    assert int(read_metrics(run.path)["step"].iloc[0]) == 1


def test_a_killed_fine_tuning_goes_on_as_one_that_was_not(trained: Run, make_config: Make, runs_dir: Path) -> None:
    path = trained.checkpoints()[-1]
    config = branch.base_config(path, make_config())
    whole = branch.begin_from(runs_dir, path, config, "whole")
    halves = branch.begin_from(runs_dir, path, config, "halves")
    assert go(whole) == 0
    train(runs_dir, halves.config, "halves", stop_at=7)
    assert go(Run(halves.path)) == 0
    assert read_metrics(whole.path)["loss/train"].equals(read_metrics(halves.path)["loss/train"])


def test_weights_are_stored_as_the_new_run_says(trained: Run, make_config: Make, runs_dir: Path) -> None:
    run = tuned(trained, make_config(**{"train.weight_precision": "bf16", "train.steps": 2}), runs_dir)
    assert go(run) == 0
    assert ck.load_tensors(run.checkpoints()[-1] / ck.MODEL)["blocks.0.mlp.up.weight"].dtype == torch.bfloat16


def test_a_changed_network_is_refused(trained: Run, make_config: Make, runs_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.n_embd: 32 -> 64"):
        tuned(trained, make_config(), runs_dir, "model.n_embd=64")
    with pytest.raises(ConfigError, match=r"data\.tokenizer cannot change"):
        tuned(trained, make_config(), runs_dir, "data.tokenizer.kind=byte", "data.tokenizer.file=null")


def test_characters_that_the_model_does_not_know_are_listed(make_config: Make, runs_dir: Path, tmp_path: Path) -> None:
    config = resolve(make_config(**{"data.tokenizer": {"kind": "char"}, "train.steps": 2}))
    run, _ = train(runs_dir, config, "chars")
    other = tmp_path / "other.txt"
    other.write_text("Überraschung! " * 400, encoding="utf-8")
    with pytest.raises(DataError, match=r"does not know: '!', .*'Ü'"):
        tuned(run, make_config(**{"data.corpus": str(other)}), runs_dir)


def test_other_weights_than_the_tokenizer_knows_are_not_trained(
    trained: Run, make_config: Make, runs_dir: Path
) -> None:
    run = tuned(trained, make_config(), runs_dir)
    values = run.config.to_dict()
    changed = {**values, "data": {**values["data"], "tokenizer": {"kind": "bpe", "vocab_size": 290}}}
    files.write_atomic(run.path / "config.yaml", build_config(changed).to_yaml().encode())
    assert go(Run(run.path)) == 2
    assert "is not the one that the weights" in (Run(run.path).status().error or "")


def test_a_run_from_scratch_begins_with_nothing(make_config: Make, runs_dir: Path) -> None:
    assert branch.begins_with(create_run(runs_dir, make_config(), "fresh")) is None


def test_a_dataset_of_the_same_tokenizer_can_be_learned(trained: Run, make_config: Make, runs_dir: Path) -> None:
    name = trained.facts["data"]["dataset"]
    run = tuned(trained, make_config(**{"data.corpus": name, "train.steps": 2}), runs_dir)
    assert go(run) == 0
    assert Run(run.path).facts["data"]["dataset"] == name


def test_a_dataset_of_another_tokenizer_is_refused(trained: Run, make_config: Make, runs_dir: Path) -> None:
    other = prepare(make_config(**{"data.tokenizer": {"kind": "byte"}}).data, 8)
    with pytest.raises(DataError, match="prepared with another tokenizer"):
        tuned(trained, make_config(**{"data.corpus": other.id}), runs_dir)


def test_a_run_that_was_moved_goes_on_by_the_remedy_it_names(trained: Run, make_config: Make, runs_dir: Path) -> None:
    moved = tuned(trained, make_config(**{"train.steps": 2}), runs_dir).path.rename(runs_dir / "moved")
    assert go(Run(moved)) == 2
    assert "--set data.tokenizer.file=RUN_DIR/begin/tokenizer.json" in (Run(moved).status().error or "")
    kept = moved / branch.BEGIN / ck.TOKENIZER
    assert go(launch.change_recipe(Run(moved), [f"data.tokenizer.file={kept}"])) == 0
