"""What is kept of a quantization: as small as told, opened bit for bit, described, and good for use alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from dgsgpt import checkpoint as ck
from dgsgpt import files, manifest
from dgsgpt.cli import main
from dgsgpt.config import build_config
from dgsgpt.errors import CheckpointError, RunError
from dgsgpt.evaluation import validation_text
from dgsgpt.lineage import lineage, tell
from dgsgpt.model.quantized import QuantizedMatrix
from dgsgpt.quantization import words
from dgsgpt.quantization.judging import Judgement, Speed, judge
from dgsgpt.quantization.keep import keep
from dgsgpt.quantization.rounding import quantize_model
from dgsgpt.runs import Run, create_run, list_runs
from tests import checkpoint_factory, run_factory

pytest.importorskip("torchao")

MODELS: dict[str, dict[str, Any]] = {
    "dense": {"n_kv_head": 1, "tie_embeddings": False},
    "moe": {"moe": {"n_expert": 4}, "mlp": "gelu", "bias": True},
}


@pytest.fixture
def origin(runs_dir: Path) -> Path:
    """A checkpoint of an untrained model at step 10."""
    return checkpoint_factory.save(create_run(runs_dir, run_factory.config(), "origin"), 10)


def cli(*given: object, code: int = 0, answer: str | None = None) -> str:
    result = CliRunner().invoke(main, [str(w) for w in given], input=answer)
    assert result.exit_code == code, result.output
    return result.stderr if code else result.stdout


def rewritten(path: Path, change: dict[str, Any]) -> None:
    """The checkpoint with other metadata, and a manifest that fits them."""
    told = files.read_json(path / ck.METADATA) or {}
    files.write_json(path / ck.METADATA, {**told, **change})
    (path / ck.MANIFEST).unlink()
    manifest.write_manifest(path)


# ---------------------------------------------------------------- kept and opened
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("network", sorted(MODELS))
@torch.no_grad()
def test_what_was_kept_gives_the_logits_of_the_model_in_memory_bit_for_bit(
    runs_dir: Path, network: str, kind: str
) -> None:
    values = {**run_factory.CONFIG, "model": {**run_factory.CONFIG["model"], **MODELS[network]}}
    path = checkpoint_factory.save(create_run(runs_dir, build_config(values), "origin"), 10)
    model = ck.load_checkpoint(path).model
    made = quantize_model(model, kind)
    kept = keep(path, runs_dir, "small", kind)
    opened = ck.load_checkpoint(kept.checkpoint)
    tokens = torch.arange(24)[None] % 256
    for part in (tokens, tokens[:, :1]):  # many rows, and few
        assert torch.equal(opened.model(part).logits, model(part).logits)
    stored = ck.load_tensors(kept.checkpoint / ck.MODEL)
    assert sum(t.nbytes for t in stored.values()) == made.after_bytes < 0.6 * made.before_bytes
    told = opened.metadata
    assert told["quantized"] == kind
    assert told["parent"] == {"run": "origin", "step": 10, "kind": "quantize"}
    assert "loss_val" not in told  # that was another model's
    assert kept.run.status().state == "finished"
    assert (
        tell(lineage(runs_dir).ancestors("small", 10)) == "scratch → run origin, step 10 → quantize: run small, step 10"
    )


def test_a_kept_model_needs_no_torchao_and_neither_its_origin_nor_its_run(
    origin: Path, runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = keep(origin, runs_dir, "small", "int4")
    moved = kept.checkpoint.rename(tmp_path / "alone")
    for folder in ("origin", "small"):
        (runs_dir / folder).rename(tmp_path / f"gone-{folder}")
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    model = ck.load_checkpoint(moved).model
    assert any(isinstance(module, QuantizedMatrix) for module in model.modules())


def test_bfloat16_weights_are_widened_when_opened_and_stay_small_on_disk(origin: Path, runs_dir: Path) -> None:
    from safetensors.torch import save_file

    narrow = {name: t.bfloat16() for name, t in ck.load_tensors(origin / ck.MODEL).items()}
    save_file(narrow, str(origin / ck.MODEL), {"format": "pt"})
    rewritten(origin, {})
    kept = keep(origin, runs_dir, "small", "int8")
    assert ck.load_tensors(kept.checkpoint / ck.MODEL)["embed.weight"].dtype == torch.bfloat16
    opened = ck.load_checkpoint(kept.checkpoint).model
    assert torch.equal(opened.embed.weight, narrow["embed.weight"].float())


def test_names_that_are_taken_are_told_and_nothing_is_left_of_a_failure(
    origin: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="exists already"):
        keep(origin, runs_dir, "origin", "int8")

    def full(*_: object, **__: object) -> None:
        raise CheckpointError("no space left")

    monkeypatch.setattr("dgsgpt.checkpoint.save_checkpoint", full)
    with pytest.raises(CheckpointError, match="no space left"):
        keep(origin, runs_dir, "small", "int8")
    assert [run.id for run in list_runs(runs_dir)] == ["origin"]


# ---------------------------------------------------------------- damage
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"quantized": "int2"}, "quantized='int2' in its metadata must be int8 or int4"),
        ({"quantization": None}, "with the groups of each weight"),
        ({"quantization": {"groups": {"blocks.0.attn.q.weight": "32"}}}, "is no size"),
        ({"quantization": {"groups": {"blocks.7.attn.q.weight": 32}}}, "belong to another config"),
        ({"quantization": {"groups": {"blocks.0.attn.q.weight": 32}}}, "the weights belong to another config"),
        ({"quantized": "int4"}, r"is torch\.int8 .* the config asks for torch\.uint8"),
        ({"quantized": None}, "is missing; the weights belong to another config"),
    ],
)
def test_metadata_that_do_not_fit_the_weights_are_told_in_one_line(
    origin: Path, runs_dir: Path, change: dict[str, Any], told: str
) -> None:
    kept = keep(origin, runs_dir, "small", "int8")
    rewritten(kept.checkpoint, change)
    with pytest.raises(CheckpointError, match=told) as caught:
        ck.load_checkpoint(kept.checkpoint)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_found(origin: Path, runs_dir: Path) -> None:
    kept = keep(origin, runs_dir, "small", "int8")
    checkpoint_factory.flip_a_bit(kept.checkpoint)
    with pytest.raises(CheckpointError, match="is damaged"):
        ck.load_checkpoint(kept.checkpoint)


# ---------------------------------------------------------------- for use alone
def test_a_quantized_checkpoint_is_written_with_and_nothing_else_is_made_of_it(
    origin: Path, runs_dir: Path, tmp_path: Path
) -> None:
    keep(origin, runs_dir, "small", "int8")
    assert json.loads(cli("sample", "small", "--prompt", "It", "--max-new-tokens", 3, "--json"))["tokens"] == 3
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {steps: 1}\n")
    for words_given, verb in (
        (("fork", "small", "--set", "train.steps=20"), "trained"),
        (("train", recipe, "--from", "small"), "trained"),
        (("export", "small", tmp_path / "hf"), "exported"),
        (("quantize", "small", "smaller"), "quantized once more"),
    ):
        message = cli(*words_given, code=2)
        assert f"is quantized to int8 and cannot be {verb}; take origin@10, its origin" in message
        assert message.count("\n") == 1
    assert "int8" in cli("checkpoints", "small")
    assert "cannot be trained" in cli("resume", "small", "--set", "train.steps=20", "--detach", code=2)
    assert {run.id for run in list_runs(runs_dir)} == {"small", "origin"}


# ---------------------------------------------------------------- judged
@pytest.fixture(scope="module")
def text() -> str:
    return validation_text("austen", 0.1)[:12_000]


@pytest.fixture(scope="module")
def judged_origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judged") / "runs"
    return checkpoint_factory.save(create_run(root, run_factory.config(), "origin"), 10)


@pytest.fixture(scope="module")
def judged(judged_origin: Path, text: str) -> Judgement:
    return judge(ck.load_checkpoint(judged_origin), "int4", text=text, name="some text", max_tokens=4000, rounds=2)


def test_a_judgement_compares_the_two_models_as_evaluating_each_would(
    judged: Judgement, judged_origin: Path, runs_dir: Path, text: str
) -> None:
    from dgsgpt.evaluation import evaluate_text

    kept = keep(judged_origin, runs_dir, "small", "int4", judged=judged)
    found = judged.to_dict()
    for name, path in (("full", judged_origin), ("quantized", kept.checkpoint)):
        opened = ck.load_checkpoint(path)
        by_itself = evaluate_text(opened.model, opened.tokenizer, text, max_tokens=4000)
        assert found["bpb"][name] == pytest.approx(by_itself.bpb, abs=1e-6)
    gap = found["bpb"]
    assert gap["difference"] == pytest.approx(gap["quantized"] - gap["full"], abs=1e-5)
    assert gap["low"] <= gap["difference"] <= gap["high"]
    assert ck.describe(kept.checkpoint).metadata["quantization"]["judged"] == json.loads(files.to_json(found))
    assert len(judged.speed.full) == len(judged.speed.quantized) == 2
    assert found["bytes"]["quantized"] < found["bytes"]["full"] == found["memory_bytes"]["full"]


@pytest.mark.parametrize(
    ("full", "quantized", "verdict", "told"),
    [
        ((10.0, 11.0), (12.0, 13.0), "faster", "It writes faster here: × 1.19 (1.18 to 1.20"),
        ((10.0, 11.0), (9.0, 8.0), "slower", "It writes slower here"),
        ((10.0, 11.0), (12.0, 10.0), "no difference shown", "No difference in speed is shown here: between 0.91"),
    ],
)  # fmt: skip
def test_speed_is_told_as_it_was_measured_in_every_turn(
    judged: Judgement, full: tuple[float, ...], quantized: tuple[float, ...], verdict: str, told: str
) -> None:
    speed = Speed(full, quantized, 32, "cpu", 1)
    assert speed.verdict == verdict
    changed = Judgement(judged.quantized, judged.comparison, speed, "text", 2, 1)
    assert any(sentence.startswith(told) for sentence in words.sentences(changed))


# ---------------------------------------------------------------- the command
def test_the_command_shows_first_and_keeps_only_what_was_accepted(
    origin: Path, runs_dir: Path, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "text.txt"
    file.write_text(text, encoding="utf-8")
    given = ("quantize", "origin", "small", "--bits", "4", "--text", file, "--max-tokens", "4000")
    shown = cli(*given, answer="n\n")
    for expected in ("bits per byte", "weights on disk", "tokens a second", "token embedding", "not kept"):
        assert expected in shown
    assert [run.id for run in list_runs(runs_dir)] == ["origin"]
    told = json.loads(cli(*given, "--yes", "--json"))
    assert told["kept"]["run_id"] == "small"
    assert set(told["bpb"]) == {"full", "quantized", "difference", "low", "high"}
    assert ck.describe(Run(runs_dir / "small").checkpoints()[0]).metadata["quantized"] == "int4"
    assert "exists already" in cli(*given, "--yes", code=2)
    assert "1 to 64 letters" in cli("quantize", "origin", "bad name", code=2)
