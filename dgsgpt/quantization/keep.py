"""An accepted quantization, kept as a run with one checkpoint of its own: integers and scales, as small as told."""

from __future__ import annotations

import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dgsgpt
from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.branch import Source, tokenizer_settings
from dgsgpt.config import RunConfig, build_config
from dgsgpt.errors import RunError
from dgsgpt.metrics import MetricsWriter
from dgsgpt.runs import Run, check_run_id, create_run, suggest_run_id

if TYPE_CHECKING:
    from dgsgpt.quantization.judging import Judgement
    from dgsgpt.quantization.rounding import Quantized

QUANTIZE = "quantize"
# What stays true of the model, whatever its weights are. Its losses do not, and those it was judged by are of
# other tokens than a training validates on: beside them they would mislead.
_STAYS = (
    "tokens", "flops", "train_time_s", "params", "active_params", "corpus", "data_fingerprint", "tokenizer_kind",
    "tokenizer_sha256", "vocab_size", "weight_precision",
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """What was made: a run and its only checkpoint."""

    run: Run
    checkpoint: Path


def name_stem(run_id: str, kind: str) -> str:
    """How the name of a quantized model begins."""
    return f"{run_id}-{kind}"


def check_free(root: Path, name: str) -> None:
    """Whether a run can have this name.

    Raises:
        RunError: it is bad or taken.
    """
    check_run_id(name)
    if (root / name).exists():
        raise RunError(f"run {name!r} exists already in {root}; try {suggest_run_id(root, name)!r}")


def keep(
    path: Path, root: Path, name: str | None, kind: str, group_size: int | None = None, judged: Judgement | None = None
) -> Kept:
    """Quantize the checkpoint at `path` and keep the result as the run `name` below `root`.

    `judged` is what was measured of the same choice; it is kept with it. Nothing is left of what could not be written.

    Raises:
        CheckpointError: the checkpoint is damaged or quantized already, or the disk refuses.
        DgsgptError: torchao is missing, or there is no such kind or group.
        RunError: the name is bad or taken.
    """
    from dgsgpt.quantization.judging import quantize

    if name is not None:
        check_free(root, name)
    ck.refuse_quantized(path, "quantized once more")
    source = Source.open(path)
    made = judged.quantized if judged is not None else quantize(path, source.config.model, kind, group_size)
    run_id = name or suggest_run_id(root, name_stem(source.run_id, kind))
    kept = root / run_id / "checkpoints" / ck.checkpoint_name(source.step)
    config = _config(source, kept)
    parent = {"run": source.run_id, "step": source.step, "kind": QUANTIZE}
    origin = f"{source.run_id}@{source.step}"
    run = create_run(root, config, run_id, ["dgsgpt", "quantize", origin, run_id, *_options(made)], parent)
    try:
        ck.save_checkpoint(
            kept.parent,
            source.step,
            model_tensors=made.tensors,
            optimizer_tensors={},
            state={"step": source.step, "tokens": 0},
            config=config,
            tokenizer=_tokenizer(path),
            metadata=_metadata(run, source, made, judged),
        )
        _finish(run, source.step, made.plan.kind, origin)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return Kept(Run(run.path), kept)


def _options(made: Quantized) -> list[str]:
    size = [] if made.group_size is None else ["--group-size", str(made.group_size)]
    return ["--bits", made.plan.kind.removeprefix("int"), *size, "--yes"]


def _config(source: Source, kept: Path) -> RunConfig:
    values = source.config.to_dict()
    tokenizer = tokenizer_settings(source.path, kept / ck.TOKENIZER)
    return build_config({**values, "data": {**values["data"], "tokenizer": tokenizer}})


def _tokenizer(path: Path) -> Any:
    from dgsgpt.data.tokenizer import load_tokenizer

    return load_tokenizer(path / ck.TOKENIZER)


def _metadata(run: Run, source: Source, made: Quantized, judged: Judgement | None) -> dict[str, Any]:
    import torch

    known = files.read_json(source.path / ck.METADATA) or {}
    told: dict[str, Any] = {**made.to_dict(), "groups": dict(made.plan.groups)}
    if judged is not None:
        told["judged"] = judged.to_dict()
    return {
        **{key: known[key] for key in _STAYS if key in known},
        "run_id": run.id,
        "step": source.step,
        "saved_at": time.time(),
        "quantized": made.plan.kind,
        "quantization": told,
        "parent": run.facts["parent"],
        "recent_steps": [],
        "recent_losses": [],
        "recent_lrs": [],
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "dgsgpt_version": dgsgpt.__version__,
    }


def _finish(run: Run, step: int, kind: str, origin: str) -> None:
    MetricsWriter(run.path).event(QUANTIZE, step, quantized=kind, origin=origin)
    status = {"state": "finished", "step": step, "max_steps": step, "message": f"{origin} quantized to {kind}"}
    files.write_json(run.path / "status.json", status)


__all__ = ["QUANTIZE", "Kept", "check_free", "keep", "name_stem"]
