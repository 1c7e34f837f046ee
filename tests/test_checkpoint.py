from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import RunConfig
from dgsgpt.data.tokenizer import train_tokenizer
from dgsgpt.errors import CheckpointError
from dgsgpt.model import GPT
from dgsgpt.runs import Run, create_run


@pytest.fixture
def save(make_config: Callable[..., RunConfig], runs_dir: Path) -> Callable[..., Path]:
    """Saves a checkpoint of a fresh model in run `a`; returns its directory."""
    config = make_config()
    run = create_run(runs_dir, config, "a")

    def save(step: int = 10, **metadata: object) -> Path:
        torch.manual_seed(step)
        return ck.save_checkpoint(
            run.path / "checkpoints",
            step,
            model_tensors=GPT(config.model).state_dict(),
            optimizer_tensors={"rng.cpu": torch.get_rng_state()},
            state={"step": step, "tokens": 1},
            config=config,
            tokenizer=train_tokenizer(config.data.tokenizer, "abc"),
            metadata={"run_id": "a", "step": step, "saved_at": float(step), **metadata},
        )

    return save


def test_what_is_saved_is_loaded(save: Callable[..., Path]) -> None:
    path = save(10)
    opened = ck.load_checkpoint(path)
    torch.manual_seed(10)
    expected = GPT(opened.config.model).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in opened.model.state_dict().items())
    assert not opened.model.training
    assert opened.tokenizer.decode(opened.tokenizer.encode("héllo")) == "héllo"
    assert opened.state["step"] == 10
    assert opened.metadata["bytes"] > 0


def test_a_checkpoint_opens_after_it_was_moved_elsewhere(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save().rename(tmp_path / "elsewhere")
    assert ck.load_checkpoint(path).config.model.n_layer == 2


def test_every_file_is_in_the_manifest_and_nothing_is_pickled(save: Callable[..., Path]) -> None:
    path = save()
    listed = json.loads((path / ck.MANIFEST).read_text())["files"]
    assert {p.name for p in path.iterdir()} == {*listed, ck.MANIFEST}
    assert {p.suffix for p in path.iterdir()} == {".json", ".yaml", ".safetensors"}


@pytest.mark.parametrize("name", [ck.MODEL, ck.OPTIMIZER, ck.CONFIG, ck.TOKENIZER, ck.METADATA, ck.STATE])
def test_one_flipped_bit_is_named(save: Callable[..., Path], name: str) -> None:
    path = save()
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        ck.load_checkpoint(path)


@pytest.mark.parametrize("name", [ck.MODEL, ck.TOKENIZER, ck.MANIFEST])
def test_a_missing_or_cut_file_is_seen_without_opening(save: Callable[..., Path], name: str) -> None:
    path = save()
    (path / name).write_bytes((path / name).read_bytes()[:-5])
    assert name in str(ck.describe(path).problem)
    (path / name).unlink()
    assert name in str(ck.describe(path).problem)
    with pytest.raises(CheckpointError, match=name):
        ck.load_checkpoint(path)


def test_resume_takes_the_newest_whose_hashes_hold(save: Callable[..., Path], runs_dir: Path) -> None:
    older, newer = save(10), save(20)
    (newer / ck.MODEL).write_bytes(b"x" * (newer / ck.MODEL).stat().st_size)
    path, problems = ck.newest_valid(Run(runs_dir / "a"))
    assert path == older
    assert len(problems) == 1
    assert "step_00000020" in problems[0]


def test_a_manifest_that_leaves_the_directory_is_refused(save: Callable[..., Path]) -> None:
    path = save()
    manifest = json.loads((path / ck.MANIFEST).read_text())
    manifest["files"]["../x"] = {"bytes": 1, "sha256": ""}
    (path / ck.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="plain file names"):
        ck.load_checkpoint(path)


@pytest.mark.parametrize("entry", [5, {}, {"bytes": "x", "sha256": ""}, {"bytes": True, "sha256": ""}, None])
def test_a_damaged_manifest_is_a_problem_and_never_a_crash(save: Callable[..., Path], entry: object) -> None:
    path = save()
    manifest = json.loads((path / ck.MANIFEST).read_text())
    files.write_json(path / ck.MANIFEST, {**manifest, "files": {**manifest["files"], ck.MODEL: entry}})
    assert "plain file names with size" in str(ck.describe(path).problem)
    with pytest.raises(CheckpointError, match="cannot be trusted"):
        ck.verify(path)


def test_a_strangely_named_folder_is_described(save: Callable[..., Path]) -> None:
    path = save().parent / "step_\u00b2"
    path.mkdir()
    assert ck.describe(path).step == 0
    assert ck.describe(path).problem


def test_a_newer_format_is_refused(save: Callable[..., Path]) -> None:
    path = save()
    manifest = json.loads((path / ck.MANIFEST).read_text())
    files.write_json(path / ck.MANIFEST, {**manifest, "format_version": 99})
    with pytest.raises(CheckpointError, match="format version 99"):
        ck.load_checkpoint(path)


def test_weights_must_match_the_config_exactly(make_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    model = GPT(make_config().model)
    tensors = dict(model.state_dict())
    name, tensor = next(iter(tensors.items()))
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        ck.apply_weights(model, {k: v for k, v in tensors.items() if k != name}, tmp_path)
    with pytest.raises(CheckpointError, match="the config asks for"):
        ck.apply_weights(model, {**tensors, name: tensor[:-1]}, tmp_path)
    with pytest.raises(CheckpointError, match="extra is not part"):
        ck.apply_weights(model, {**tensors, "extra": tensor}, tmp_path)


def test_a_failed_save_leaves_the_earlier_one_and_no_rest(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(10)
    real = files.write_json

    def full_disk(path: Path, *args: object, **kwargs: object) -> None:
        if path.name == ck.MANIFEST:
            raise OSError(28, "No space left on device")
        real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ck.files, "write_json", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save(20)
    monkeypatch.undo()
    assert [p.name for p in first.parent.iterdir()] == [first.name]
    ck.verify(first)


def test_saving_a_step_again_replaces_it(save: Callable[..., Path]) -> None:
    path = save(10)
    (path / ck.MODEL).write_bytes(b"damaged")
    assert save(10) == path
    ck.verify(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_pruning_keeps_the_newest_and_the_spared(save: Callable[..., Path]) -> None:
    paths = [save(step) for step in (10, 20, 30, 40)]
    gone = ck.prune(paths[0].parent, keep_last=2, spare=[paths[0]])
    assert gone == [paths[1]]
    assert sorted(p.name for p in paths[0].parent.iterdir()) == [p.name for p in (paths[0], *paths[2:])]


def test_damaged_checkpoints_do_not_count_as_kept(save: Callable[..., Path]) -> None:
    paths = [save(step) for step in (10, 20)]
    (paths[1] / ck.MODEL).unlink()
    assert ck.prune(paths[0].parent, keep_last=1) == []
    assert paths[0].is_dir()


def test_a_checkpoint_is_found_by_path_run_and_step(save: Callable[..., Path], runs_dir: Path) -> None:
    low, high = save(10, loss_val=1.0), save(20, loss_val=2.0)
    assert ck.find_checkpoint(str(high), runs_dir) == high
    assert ck.find_checkpoint("a@20", runs_dir) == high
    assert ck.find_checkpoint("a", runs_dir) == low, "the best of the run"
    with pytest.raises(CheckpointError, match="no checkpoint 'b'"):
        ck.find_checkpoint("b", runs_dir)


def test_an_outsized_safetensors_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="over the limit"):
        ck.load_tensors(path)
    path.write_bytes(b"\x10")
    with pytest.raises(CheckpointError):
        ck.load_tensors(path)


@pytest.mark.parametrize("reference", ["a" * 300, "a\0b", "../..", "run@", "@5", ""])
def test_what_names_no_checkpoint_is_one_line(tmp_path: Path, reference: str) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        ck.find_checkpoint(reference, tmp_path)


def test_the_directory_of_a_run_stands_for_its_checkpoint(save: Callable[..., Path]) -> None:
    run_dir = save(3).parent.parent
    assert ck.load_checkpoint(run_dir).metadata["step"] == 3
