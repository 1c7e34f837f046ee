"""An import becomes a run like any other: listed, opened, judged, written with, trained further, sent on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from dgsgpt import checkpoint as ck
from dgsgpt.cli import main
from dgsgpt.config import RunConfig
from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.errors import CheckpointError, RunError
from dgsgpt.interop.incoming import Incoming
from dgsgpt.interop.keep import import_model, keep
from dgsgpt.metrics import read_metrics
from dgsgpt.model import GPT
from dgsgpt.runs import Run, list_runs
from tests.model.tiny import tiny_config
from tests.train.test_session import train

LEGACY = Path(__file__).parent / "data" / "legacy"
SAMPLE, VOCAB = LEGACY / "multihead_dense.pth", LEGACY / "vocab.txt"


def cli(*words: object, code: int = 0) -> str:
    """What a command prints; its errors are what is given where it ends with `code` 2."""
    result = CliRunner().invoke(main, [str(w) for w in words])
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def incoming(**changes: object) -> Incoming:
    torch.manual_seed(0)
    config = tiny_config(vocab_size=256)
    values: dict[str, object] = {
        "family": "test", "model": config, "tensors": GPT(config).state_dict(), "tokenizer": ByteTokenizer(),
    }  # fmt: skip
    return Incoming(**{**values, **changes})  # type: ignore[arg-type]


# ---------------------------------------------------------------- old models live on
@pytest.mark.slow
def test_an_old_model_is_imported_written_with_judged_trained_and_compared(runs_dir: Path, tmp_path: Path) -> None:
    told = json.loads(cli("import", SAMPLE, "old", "--vocab", VOCAB, "--json"))
    assert told["run_id"] == "old"
    assert Path(told["checkpoint"]).is_dir()
    (listed,) = json.loads(cli("checkpoints", "--json"))
    assert listed["imported"]["family"] == told["family"]
    assert Run(runs_dir / "old").status().state == "finished"
    assert json.loads(cli("sample", "old", "--prompt", "the", "--max-new-tokens", 5, "--seed", 1, "--json"))["tokens"]

    known = VOCAB.read_text(encoding="utf-8")
    text = tmp_path / "text.txt"
    text.write_text("".join(c for c in "the cat saw a dog in the rain. " if c in known) * 300, encoding="utf-8")
    before = json.loads(cli("eval", "old", "--text", text, "--json"))["loss"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{corpus: {text}}}\ntrain: {{steps: 30, micro_batch_size: 4, lr: 3e-3, device: cpu, log_every: 5,"
        " schedule: {warmup_steps: 2}}\n",
        encoding="utf-8",
    )
    cli("train", recipe, "--from", "old", "--run-id", "tuned", "--json")
    assert json.loads(cli("eval", "tuned", "--text", text, "--json"))["loss"] < before - 0.5
    compared = json.loads(cli("compare", "old", "tuned", "--text", text, "--json"))
    assert "tuned" in json.dumps(compared)
    assert Run(runs_dir / "tuned").facts["parent"]["run"] == "old"


def test_a_destination_that_is_a_path_is_a_directory_there(tmp_path: Path) -> None:
    told = json.loads(cli("import", SAMPLE, tmp_path / "elsewhere" / "mine", "--vocab", VOCAB, "--json"))
    assert Path(told["run_dir"]) == tmp_path / "elsewhere" / "mine"
    opened = ck.load_checkpoint(tmp_path / "elsewhere" / "mine")  # the run's directory stands for its checkpoint
    assert opened.tokenizer.decode(opened.tokenizer.encode("the")) == "the"
    assert json.loads(cli("sample", tmp_path / "elsewhere" / "mine", "--prompt", "the", "--json"))["text"]


def test_nothing_is_lost_by_an_import_that_fails(runs_dir: Path) -> None:
    import_model(SAMPLE, runs_dir, "old", vocab=VOCAB)
    with pytest.raises(RunError, match="exists already"):
        import_model(SAMPLE, runs_dir, "old", vocab=VOCAB)
    assert [run.id for run in list_runs(runs_dir)] == ["old"]
    ck.verify(Run(runs_dir / "old").checkpoints()[0])


def test_a_name_is_made_where_none_is_given(runs_dir: Path) -> None:
    first = import_model(SAMPLE, runs_dir, vocab=VOCAB)
    second = import_model(SAMPLE, runs_dir, vocab=VOCAB)
    assert [first.run.id, second.run.id] == ["multihead_dense", "multihead_dense-2"]


# ---------------------------------------------------------------- what a source may be
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nothing.pth", "no such file or folder"),
        ("weights.safetensors", "do not say what they are of"),
        ("letter.docx", "is not a model that is known here"),
        ("folder", "holds no model"),
    ],
)
def test_other_things_are_refused_in_one_line(tmp_path: Path, name: str, told: str) -> None:
    source = tmp_path / name
    if name == "folder":
        source.mkdir()
    elif name != "nothing.pth":
        source.write_bytes(b"x" * 100)
    message = cli("import", source, "made", code=2)
    assert told in message
    assert message.count("\n") == 1


def test_what_is_no_file_is_named_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    assert "is a pipe, socket or device" in cli("import", tmp_path / "pipe.gguf", "x", code=2)
    assert "is a pipe, socket or device" in cli("import", "/dev/zero", "x", code=2)
    assert "cannot be read" in cli("import", tmp_path / "loop.pth", "x", code=2)
    assert "cannot be read: File name too long" in cli("import", "a" * 5000, "x", code=2)


def test_a_file_whose_name_is_no_text_is_imported(tmp_path: Path, runs_dir: Path) -> None:
    source = tmp_path / os.fsdecode(b"o\xffd\n.pth")
    shutil.copyfile(SAMPLE, source)
    done = import_model(source, runs_dir, vocab=VOCAB)
    told = ck.describe(done.checkpoint).metadata["imported"]["source"]
    assert "d" in told
    assert told.isprintable()


def test_options_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert "--vocab is for DGS-GPT files only" in cli("import", tmp_path, "x", "--vocab", VOCAB, code=2)
    assert "must be KEY=NUMBER" in cli("import", SAMPLE, "x", "--set", "n_head=four", code=2)
    assert "must be KEY=NUMBER" in cli("import", SAMPLE, "x", "--set", f"n_head={'9' * 5000}", code=2)
    assert "1 to 64 letters" in cli("import", SAMPLE, "bad name", code=2)


# ---------------------------------------------------------------- keeping
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t: t.pop("norm.weight"), "has no weights for norm.weight"),
        (lambda t: t.update({"norm.weight": torch.ones(7)}), r"norm\.weight has the shape \(7,\)"),
        (lambda t: t["norm.weight"].fill_(float("nan")), "norm.weight holds NaN"),
        (lambda t: t.update(surplus=torch.ones(1)), "surplus has no place"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_left(
    runs_dir: Path, spoil: Callable[[dict[str, torch.Tensor]], object], told: str
) -> None:
    given = incoming()
    tensors = {name: tensor.clone() for name, tensor in given.tensors.items()}
    spoil(tensors)
    with pytest.raises(CheckpointError, match=told):
        keep(incoming(tensors=tensors), runs_dir, "bad", Path("source"))
    assert not (runs_dir / "bad").exists()


def test_a_full_disk_leaves_nothing(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise CheckpointError("no space left")

    monkeypatch.setattr("dgsgpt.checkpoint.save_checkpoint", full)
    with pytest.raises(CheckpointError, match="no space left"):
        keep(incoming(), runs_dir, "bad", Path("source"))
    assert not (runs_dir / "bad").exists()


def test_what_was_kept_gives_the_same_logits(runs_dir: Path) -> None:
    given = incoming()
    model = GPT(given.model)
    model.load_state_dict(dict(given.tensors))
    done = keep(given, runs_dir, "good", Path("source"))
    tokens = torch.arange(40)[None] % 256
    opened = ck.load_checkpoint(done.checkpoint)
    with torch.no_grad():
        assert torch.equal(opened.model(tokens).logits, model.eval()(tokens).logits)
    assert opened.metadata["imported"]["family"] == "test"
    assert opened.metadata["params"] == sum(p.numel() for p in model.parameters())


# ---------------------------------------------------------------- our own checkpoints, sent
def test_a_checkpoint_of_ours_is_copied_and_goes_on(
    make_config: Callable[..., RunConfig], runs_dir: Path, tmp_path: Path
) -> None:
    run, _ = train(runs_dir, make_config(), "a")
    sent = tmp_path / "sent" / "step_00000020"
    shutil.copytree(run.checkpoints()[-1], sent)
    (sent / "stranger.txt").write_text("not of the checkpoint")
    shutil.rmtree(runs_dir)
    told = json.loads(cli("import", sent, "theirs", "--json"))
    assert told["family"] == "dgsgpt"
    assert not (Path(told["checkpoint"]) / "stranger.txt").exists()
    cli("fork", "theirs", "--set", "train.steps=22", "--run-id", "on", "--json")
    assert int(read_metrics(runs_dir / "on")["step"].max()) == 22


def test_a_damaged_checkpoint_of_ours_is_not_taken(
    make_config: Callable[..., RunConfig], runs_dir: Path, tmp_path: Path
) -> None:
    run, _ = train(runs_dir, make_config(**{"train.steps": 2}), "a")
    sent = tmp_path / "step_00000002"
    shutil.copytree(run.checkpoints()[-1], sent)
    (sent / ck.CONFIG).write_text("model: {}\n")
    assert f"{ck.CONFIG} is damaged" in cli("import", sent, "theirs", code=2)
    assert not (runs_dir / "theirs").exists()


def test_an_imported_model_has_no_optimizer_to_fork_with(runs_dir: Path) -> None:
    import_model(SAMPLE, runs_dir, "old", vocab=VOCAB)
    assert "no optimizer state" in cli("fork", "old", code=2)
