"""Other people's models become runs: recognised, read, and kept as a checkpoint like any other."""

from __future__ import annotations

import platform
import re
import shutil
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dgsgpt
from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.branch import tokenizer_settings
from dgsgpt.config import RunConfig, build_config, load_config
from dgsgpt.costs import count_params
from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError, ConfigError
from dgsgpt.interop.incoming import Incoming, Progress
from dgsgpt.interop.sandbox import looks_like_torch
from dgsgpt.manifest import listed_files
from dgsgpt.metrics import MetricsWriter
from dgsgpt.runs import Run, check_run_id, create_run, suggest_run_id

if TYPE_CHECKING:
    from torch import Tensor

TORCH_FILES = (".pth", ".pt", ".bin", ".ckpt")
KINDS = (
    "a DGS-GPT .pth file, a Hugging Face folder (config.json and safetensors), a .gguf file or a checkpoint folder of "
    "dgsgpt"
)


@dataclass(frozen=True)
class Imported:
    """What an import has made; `warnings` are sentences for the person."""

    run: Run
    checkpoint: Path
    family: str
    warnings: tuple[str, ...] = ()


def import_model(
    source: Path,
    root: Path,
    name: str | None = None,
    *,
    vocab: Path | None = None,
    given: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Read the model at `source` and keep it as the run `name` below `root`; nothing in it is executed.

    `vocab` is the text whose characters a DGS-GPT model knows; `given` says what such a file leaves open.

    Raises:
        CheckpointError: the source cannot be read, is damaged, or is a model that dgsgpt cannot express.
        RunError: the name is bad or taken, or the disk refuses.
    """
    report = progress or (lambda stage, share: None)
    if name is not None:
        check_run_id(name)
    kind = recognise(source)
    if kind != "legacy" and (vocab is not None or given):
        option = "--vocab" if vocab is not None else "--set"
        raise CheckpointError(f"{shown(source)}: {option} is for DGS-GPT files only; leave it out")
    stem = source.stem if source.is_file() else source.absolute().name
    run_id = name or suggest_run_id(root, re.sub(r"^step_\d+$", source.absolute().parent.parent.name, stem))
    if kind == "own":
        return _copy_own(source, root, run_id)
    incoming = _read(kind, source, vocab, given or {}, report)
    report("saving", 0.95)
    return keep(incoming, root, run_id, source)


def recognise(source: Path) -> str:
    """Which program the model at `source` is of: own, hf, gguf or legacy.

    Raises:
        CheckpointError: it is none of these.
    """
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            if (source / ck.MANIFEST).is_file():
                return "own"
            if (source / "config.json").is_file():
                return "hf"
            raise CheckpointError(f"{shown(source)}: holds no model that is known here; give {KINDS}")
    except FileNotFoundError:
        raise CheckpointError(f"{shown(source)}: no such file or folder; give {KINDS}") from None
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        reason = getattr(e, "strerror", None) or e
        raise CheckpointError(f"{shown(source)}: cannot be read: {reason}; give {KINDS}") from None
    if not stat.S_ISREG(mode):
        raise CheckpointError(f"{shown(source)}: is a pipe, socket or device; give {KINDS}")
    suffix = source.suffix.lower()
    if suffix == ".gguf":
        return "gguf"
    if suffix in TORCH_FILES or looks_like_torch(source):
        return "legacy"
    if suffix == ".safetensors":
        raise CheckpointError(
            f"{shown(source)}: weights alone do not say what they are of; give the folder with config.json"
        )
    raise CheckpointError(f"{shown(source)}: is not a model that is known here; give {KINDS}")


def _read(kind: str, source: Path, vocab: Path | None, given: Mapping[str, int], report: Progress) -> Incoming:
    if kind == "hf":
        from dgsgpt.interop.hf_import import read_hf

        return read_hf(source, report)
    if kind == "gguf":
        from dgsgpt.interop.gguf import read_gguf

        return read_gguf(source, report)
    from dgsgpt.interop.legacy import read_legacy

    return read_legacy(source, vocab, given, report)


# ---------------------------------------------------------------- keeping
def keep(incoming: Incoming, root: Path, run_id: str, source: Path) -> Imported:
    """Write a run in state `finished` with one checkpoint; nothing is left of one that could not be written.

    Raises:
        CheckpointError: tensors do not fit the config, or the disk refuses.
        RunError: the id is bad or taken.
    """
    check_tensors(incoming, source)
    path = root / run_id / "checkpoints" / ck.checkpoint_name(incoming.step)
    config = _config(incoming, path)
    name = shown(source.absolute().name)  # what a file system takes for a name need not be text
    told = {**incoming.facts, "source": name, "family": incoming.family, "warnings": list(incoming.warnings)}
    run = create_run(root, config, run_id, ["dgsgpt", "import", name, run_id])
    try:
        run.facts["imported"] = told
        files.write_json(run.path / "run.json", run.facts)
        ck.save_checkpoint(
            run.path / "checkpoints",
            incoming.step,
            model_tensors=incoming.tensors,
            optimizer_tensors={},
            state={"step": incoming.step, "tokens": 0, "tokenizer_sha256": incoming.tokenizer.sha256},
            config=config,
            tokenizer=incoming.tokenizer,
            metadata=_metadata(run, incoming, config, told),
        )
        _finish(run, incoming.step, incoming.family)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return Imported(Run(run.path), path, incoming.family, incoming.warnings)


def check_tensors(incoming: Incoming, source: Path) -> None:
    """Names and shapes against the network they are to be.

    Raises:
        CheckpointError: names the first tensor that is missing, unknown, of another shape, or not of finite numbers.
    """
    import torch

    from dgsgpt.model import GPT

    with torch.device("meta"):
        wanted: dict[str, Tensor] = GPT(incoming.model).state_dict()
    for name, tensor in wanted.items():
        given = incoming.tensors.get(name)
        if given is None:
            raise CheckpointError(f"{shown(source)}: has no weights for {name}; the file is not complete")
        if given.shape != tensor.shape:
            raise CheckpointError(
                f"{shown(source)}: {name} has the shape {tuple(given.shape)}, the network asks for "
                f"{tuple(tensor.shape)}; the weights belong to another config"
            )
        if not bool(torch.isfinite(given).all()):
            raise CheckpointError(f"{shown(source)}: {name} holds NaN or infinite numbers; the model is damaged")
    unknown = sorted(set(incoming.tensors) - set(wanted))
    if unknown:
        raise CheckpointError(f"{shown(source)}: {unknown[0]} has no place in the network that its config describes")


def _config(incoming: Incoming, path: Path) -> RunConfig:
    tokenizer: dict[str, Any] = {"kind": "file", "file": str(path / ck.TOKENIZER)}
    if incoming.tokenizer.kind in ("byte", "gpt2"):
        tokenizer = {"kind": incoming.tokenizer.kind}
    values = {"model": incoming.model.model_dump(), "data": {"tokenizer": tokenizer}, "train": dict(incoming.train)}
    try:
        return build_config(values, "the imported model")
    except ConfigError as e:
        raise CheckpointError(f"{e}: this model cannot be expressed here") from e


def _metadata(run: Run, incoming: Incoming, config: RunConfig, told: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    return {
        "run_id": run.id,
        "step": incoming.step,
        "saved_at": time.time(),
        "params": count_params(config.model),
        "active_params": count_params(config.model, active=True),
        "recent_steps": [],
        "recent_losses": [],
        "recent_lrs": [],
        "tokenizer_kind": incoming.tokenizer.kind,
        "tokenizer_sha256": incoming.tokenizer.sha256,
        "vocab_size": incoming.tokenizer.vocab_size,
        "weight_precision": "fp32",
        "imported": dict(told),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "dgsgpt_version": dgsgpt.__version__,
    }


def _finish(run: Run, step: int, family: str) -> None:
    MetricsWriter(run.path).event("import", step, family=family)
    status = {"state": "finished", "step": step, "max_steps": step, "message": f"imported: {family}"}
    files.write_json(run.path / "status.json", status)


def _copy_own(source: Path, root: Path, run_id: str) -> Imported:
    """A checkpoint of dgsgpt that was moved or sent, as a run of its own; its bytes stay as they are."""
    ck.verify(source)
    info = ck.describe(source)
    kept = root / run_id / "checkpoints" / ck.checkpoint_name(info.step)
    values = load_config(source / ck.CONFIG).to_dict()
    tokenizer = tokenizer_settings(source, kept / ck.TOKENIZER)
    config = build_config({**values, "data": {**values["data"], "tokenizer": tokenizer}})
    run = create_run(root, config, run_id, ["dgsgpt", "import", shown(source.name), run_id])
    try:
        kept.mkdir()
        for name in (*listed_files(source), ck.MANIFEST):  # copied, not linked: others may write into theirs
            shutil.copyfile(source / name, kept / name)
        ck.verify(kept)
        run.facts["imported"] = {"family": "dgsgpt", "source": shown(info.run_id), "warnings": []}
        files.write_json(run.path / "run.json", run.facts)
        _finish(run, info.step, "dgsgpt")
    except OSError as e:
        shutil.rmtree(run.path, ignore_errors=True)
        raise CheckpointError(f"{shown(run.path)}: cannot be written: {e.strerror or e}; free some space") from e
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return Imported(Run(run.path), kept, "dgsgpt")
