"""New runs that begin with what another one has learned.

A fork goes on from a checkpoint with its optimizer, at its step, with some settings changed. A fine-tuning begins at
step 0 from the weights alone, on any text, with the tokenizer that these weights know. Either keeps what it needs in
its own directory, so that the run it came from may be deleted: files are linked where the file system can, which takes
no space, and copied where it cannot; nothing ever writes into a checkpoint's files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import ModelConfig, RunConfig, build_config, load_config
from dgsgpt.errors import CheckpointError, ConfigError, RunError
from dgsgpt.metrics import METRICS, MetricsWriter, read_events
from dgsgpt.recipe import ANY_CHANGE, accept
from dgsgpt.rules import differences, nest_override
from dgsgpt.runs import Run, create_run, suggest_run_id
from dgsgpt.update_groups import list_weights

BEGIN = "begin"  # in a run's directory: the checkpoint its weights are from, or the tokenizer it was forked with
FORK, FINE_TUNE = "fork", "fine-tune"
_DATA = ("data.corpus", "data.val_fraction", "data.document_separator")
_SHAPES_OPTIMIZER = ("train.optimizer", "train.weight_precision")


@dataclass(frozen=True)
class Source:
    """A verified checkpoint that something begins from."""

    path: Path
    run_id: str
    step: int
    config: RunConfig

    @classmethod
    def open(cls, path: Path) -> Source:
        """Raises CheckpointError where a file is damaged, or its weights are quantized."""
        ck.verify(path)
        ck.refuse_quantized(path, "trained")
        info = ck.describe(path)
        return cls(path, info.run_id, info.step, load_config(path / ck.CONFIG))


# ---------------------------------------------------------------- what may be changed
def tokenizer_settings(path: Path, kept_at: Path | None = None) -> dict[str, Any]:
    """`data.tokenizer` for a run whose model knows the tokenizer of the checkpoint at `path`.

    One that a text has taught can only be named by its file, which is in the checkpoint, or will be `kept_at`.
    """
    kind = (files.read_json(path / ck.TOKENIZER) or {}).get("type")
    if kind in ("byte", "gpt2"):
        return {"kind": kind}
    return {"kind": "file", "file": str(kept_at or (path / ck.TOKENIZER).absolute())}


def base_config(path: Path, config: RunConfig, overrides: Iterable[str] = ()) -> RunConfig:
    """`config` with the network and the tokenizer of the checkpoint at `path`, then with `overrides`.

    Raises:
        ConfigError: an override breaks a rule, or changes the shape of a weight.
    """
    ck.refuse_quantized(path, "trained")
    known = load_config(path / ck.CONFIG).to_dict()
    values = config.to_dict()
    values = {**values, "model": known["model"], "data": {**values["data"], "tokenizer": tokenizer_settings(path)}}
    for override in overrides:
        values = nest_override(values, override, RunConfig)
    changed = build_config(values)
    if changed.data.tokenizer.model_dump(exclude_defaults=True) != tokenizer_settings(path):
        raise ConfigError(
            "data.tokenizer cannot change: the weights know only the tokenizer they learned with; leave it"
        )
    check_shapes(build_config(known).model, changed.model)
    return changed


def check_shapes(known: ModelConfig, wanted: ModelConfig) -> None:
    """Refuse a network whose weights do not have the shapes of those that are there.

    Raises:
        ConfigError: names the settings that differ.
    """
    was, now = ({w.name: w.shape for w in list_weights(model)} for model in (known, wanted))
    if was == now:
        return
    changed = differences(known.model_dump(), wanted.model_dump())
    shown = ", ".join(f"model.{name}: {a!r} -> {b!r}" for name, (a, b) in changed.items())
    raise ConfigError(
        f"{shown}: changes the shapes of the weights, which are there already; leave the network as it is, or train "
        "a new model"
    )


# ---------------------------------------------------------------- fork
def fork_config(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The config of the checkpoint at `path` with `overrides`.

    Raises:
        ConfigError: an override is unknown or breaks a rule.
    """
    ck.refuse_quantized(path, "trained")
    values = load_config(path / ck.CONFIG).to_dict()
    for override in overrides:
        values = nest_override(values, override, RunConfig)
    return build_config(values)


def check_fork(path: Path, config: RunConfig, step: int) -> None:
    """Whether a run of `config` can go on from the checkpoint at `path`, which is of `step`.

    Raises:
        CheckpointError: it was imported and has no optimizer state.
        ConfigError: the shape of a weight, the tokenizer or the optimizer differs, or no step is left to make.
    """
    if ck.describe(path).metadata.get("imported"):
        raise CheckpointError(
            f"{path}: was imported and has no optimizer state to go on with; train from its weights instead "
            "(`dgsgpt train CONFIG --from CHECKPOINT`)"
        )
    known = load_config(path / ck.CONFIG)
    check_shapes(known.model, config.model)
    if known.data.tokenizer != config.data.tokenizer:
        raise ConfigError(
            "data.tokenizer cannot change in a fork: the model knows only the tokenizer it learned with; leave it"
        )
    changed = differences(known.to_dict(), config.to_dict())
    for name in _SHAPES_OPTIMIZER:
        if name in changed:
            was, now = changed[name]
            raise ConfigError(
                f"{name}: {was!r} -> {now!r}: a fork goes on with the optimizer's state, which is that of {was}; leave "
                "it, or train from the weights alone (`dgsgpt train CONFIG --from CHECKPOINT`)"
            )
    if config.train.steps <= step:
        raise ConfigError(
            f"train.steps={config.train.steps} leaves nothing to do after step {step}; give it more than {step}"
        )


def fork(root: Path, path: Path, config: RunConfig, run_id: str | None = None, command: Sequence[str] = ()) -> Run:
    """A new run of `config` (see `fork_config`) that goes on from the checkpoint at `path` as its own would.

    The curve up to there comes along. Where the text changes, the tokenizer stays the one the model knows.

    Raises:
        CheckpointError: the checkpoint is damaged, or was imported and has no optimizer state.
        ConfigError: see `check_fork`.
        RunError: the run cannot be made.
    """
    source = Source.open(path)
    check_fork(path, config, source.step)
    changed = differences(source.config.to_dict(), config.to_dict())
    other_text = any(name in changed for name in _DATA)

    def fill(run: Run) -> RunConfig:
        kept = run.path / "checkpoints" / ck.checkpoint_name(source.step)
        link_checkpoint(path, kept)
        link_files([kept / ck.TOKENIZER], run.path / BEGIN)
        own = config
        if config.data.tokenizer.file is not None or other_text:
            own = _with_tokenizer(config, tokenizer_settings(path, run.path / BEGIN / ck.TOKENIZER))
        _bring_metrics(path, run, source.step)
        accept(run.path, {name: now for name, (_, now) in differences(source.config.to_dict(), own.to_dict()).items()})
        if other_text:
            accept(run.path, {ANY_CHANGE: True})  # the new text's fingerprint, which is not known yet
        _bring_settled(path, run)
        return own

    told = list(command) or ["dgsgpt", "fork", f"{source.run_id}@{source.step}"]
    return _make(root, source, config, FORK, run_id, told, fill)


def _with_tokenizer(config: RunConfig, tokenizer: Mapping[str, Any]) -> RunConfig:
    values = config.to_dict()
    return build_config({**values, "data": {**values["data"], "tokenizer": tokenizer}})


def _bring_metrics(path: Path, run: Run, step: int) -> None:
    """The lines of the run that `path` belongs to, up to its step; none for a checkpoint that lies alone."""
    lines = path.absolute().parent.parent / METRICS
    if path.absolute().parent.name == "checkpoints" and lines.is_file():
        shutil.copyfile(lines, run.path / METRICS)
        MetricsWriter(run.path).cut_after(step)


def _bring_settled(path: Path, run: Run) -> None:
    """What `auto` meant there, so that an unchanged fork computes as its origin would have."""
    settled = (files.read_json(path / ck.METADATA) or {}).get("settled")
    if isinstance(settled, dict):
        files.write_json(run.path / "run.json", {**run.facts, "settled": settled})


# ---------------------------------------------------------------- fine-tuning
def begin_from(
    root: Path, path: Path, config: RunConfig, run_id: str | None = None, command: Sequence[str] = ()
) -> Run:
    """A new run of `config` (see `base_config`) that begins with the weights of the checkpoint at `path`.

    Raises:
        CheckpointError: the checkpoint is damaged.
        ConfigError: the config has another network than the checkpoint.
        RunError: the run cannot be made.
    """
    source = Source.open(path)
    check_shapes(source.config.model, config.model)
    told = list(command) or ["dgsgpt", "train", "CONFIG", "--from", f"{source.run_id}@{source.step}"]

    def fill(run: Run) -> RunConfig:
        link_checkpoint(path, run.path / BEGIN)
        return _with_tokenizer(config, tokenizer_settings(path, run.path / BEGIN / ck.TOKENIZER))

    return _make(root, source, config, FINE_TUNE, run_id, told, fill)


def begins_with(run: Run) -> Path | None:
    """The checkpoint whose weights a run begins with; None for one that begins from scratch or is a fork."""
    path = run.path / BEGIN
    return path if (path / ck.MANIFEST).is_file() else None


def check_begun(run: Run, found: bool) -> None:
    """Refuse to train from scratch what was to go on from learned weights.

    Args:
        run: the run that begins or goes on.
        found: whether it has a whole checkpoint of its own.

    Raises:
        RunError: the making of a fork or fine-tuning was interrupted, or a fork has lost all its checkpoints.
    """
    parent = run.facts.get("parent")
    kind = parent.get("kind") if isinstance(parent, dict) else None
    if kind not in (FORK, FINE_TUNE):
        return
    begun = found if kind == FORK else found or begins_with(run) is not None
    if begun and read_events(run.path, (kind,)):  # which is written last
        return
    origin = f"{parent.get('run')}@{parent.get('step')}" if isinstance(parent, dict) else "its origin"
    fault = "was not completed when it was made" if begun else "has no whole checkpoint to go on from"
    raise RunError(f"run {run.id!r}: the {kind} of {origin} {fault}; delete it and make it again")


def name_stem(run_id: str, kind: str) -> str:
    """How the name of a run begins that begins with a checkpoint of `run_id`."""
    return f"{run_id}-{'fork' if kind == FORK else 'tuned'}"


# ---------------------------------------------------------------- making
def _make(
    root: Path,
    source: Source,
    config: RunConfig,
    kind: str,
    run_id: str | None,
    command: Sequence[str],
    fill: Callable[[Run], RunConfig],
) -> Run:
    """Create the run and fill it; nothing is left of one that could not be filled."""
    parent = {"run": source.run_id, "step": source.step, "kind": kind}
    run = _claim(root, config, run_id, name_stem(source.run_id, kind), command, parent)
    try:
        own = fill(run)
        if own != config:
            files.write_atomic(run.path / "config.yaml", own.to_yaml().encode())
        MetricsWriter(run.path).event(kind, source.step if kind == FORK else 0, run=source.run_id, at=source.step)
    except OSError as e:
        shutil.rmtree(run.path, ignore_errors=True)
        raise RunError(f"{run.path}: cannot be made: {e.strerror or e}; free some space or choose another place") from e
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return Run(run.path)


def _claim(
    root: Path, config: RunConfig, run_id: str | None, stem: str, command: Sequence[str], parent: dict[str, Any]
) -> Run:
    """The run's directory, under the next free name where none was asked for and another process takes the first."""
    while True:
        name = run_id or suggest_run_id(root, stem)
        try:
            return create_run(root, config, name, command, parent)
        except RunError:
            if run_id is not None or suggest_run_id(root, stem) == name:
                raise


def link_checkpoint(path: Path, folder: Path) -> None:
    """The files of the checkpoint at `path` in a new folder.

    Raises:
        CheckpointError: one of them has gone meanwhile, e.g. by `train.keep_last` of a run that is trained.
    """
    try:
        link_files((path / name for name in (*ck.listed_files(path), ck.MANIFEST)), folder)
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: was deleted while it was read; give one that is there") from e


def link_files(paths: Iterable[Path], folder: Path) -> None:
    """Hard links to files of ours in a new or empty folder, or copies where the file system cannot link the two."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copyfile(path, folder / path.name)
    files.fsync_directory(folder)
