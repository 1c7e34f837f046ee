"""What a run's trainer found on its validation text every `train.eval_every` steps, in the form of kept evaluations.

The trainer writes each to `events.jsonl`; nothing is copied. The text is told by the sha256 of the dataset's validation
split, as it is for evaluations that were asked for, so that both stand in one list: the whole split at the end of a
run beside evaluations of the whole text, and the part of `train.eval_tokens` beside those of the same part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from dgsgpt.data.dataset import DATASET_ID, datasets_root, open_dataset
from dgsgpt.errors import ConfigError, DataError, RunError
from dgsgpt.evaluation.kept import FORMAT_VERSION, Kept
from dgsgpt.metrics import read_events
from dgsgpt.runs import Run

EVENT = "eval"
_FIGURES = ("loss", "ppl", "bpb", "tokens", "bytes")
_HASHED_AT_ONCE = 1 << 16


def of_run(run: Run) -> list[Kept]:
    """The automatic evaluations of a run, by step; of a step that was trained again the latest one.

    Those without a finite figure are left out, and all of a run whose config or data are not known.
    """
    data = run.facts.get("data")
    try:
        config = run.config
    except (ConfigError, RunError):
        return []
    if not isinstance(data, dict) or not all(isinstance(data.get(k), str) for k in ("fingerprint", "tokenizer_sha256")):
        return []
    text = {
        "name": f"{config.data.corpus}, validation split",
        "sha256": text_sha256(data["fingerprint"], data.get("dataset")),
        "bytes": data.get("val_bytes"),
    }
    latest: dict[tuple[int, bool], Kept] = {}
    for event in read_events(run.path, (EVENT,)):
        if not _is_whole(event):
            continue
        whole = bool(event.get("whole_split"))
        latest[event["step"], whole] = Kept(run, {
            "format_version": FORMAT_VERSION,
            "time": float(event["time"]),
            "checkpoint": f"step_{event['step']:08d}",
            "tokenizer_sha256": data["tokenizer_sha256"],
            "text": text,
            "context": event["context"],
            "stride": event["stride"],
            "max_tokens": None if whole else config.train.eval_tokens,
            "document_separator": config.data.document_separator,
            "rope_scaling": None,
            "results": {name: event[name] for name in _FIGURES},
            "automatic": config.train.eval_every,
        })  # fmt: skip
    return [latest[key] for key in sorted(latest)]


def of_runs(runs: Iterable[Run]) -> list[Kept]:
    """The automatic evaluations of several runs."""
    return [kept for run in runs for kept in of_run(run)]


def saved(found: Iterable[Kept]) -> list[Kept]:
    """Those of checkpoints that are there."""
    return [kept for kept in found if kept.path.is_dir()]


def _is_whole(event: dict[str, Any]) -> bool:
    """Whether an event is as the trainer writes it, with finite figures."""
    counts = all(type(event.get(name)) is int and event[name] >= 0 for name in ("step", "context", "stride"))
    figures = all(isinstance(event.get(name), int | float) for name in (*_FIGURES, "time"))
    return counts and figures


def text_sha256(fingerprint: str, dataset_id: object) -> str:
    """The sha256 of the validation text of the dataset with this id and fingerprint.

    Where it is not kept here any more the fingerprint stands for it, so that only runs of one dataset compare.
    """
    if not isinstance(dataset_id, str) or not DATASET_ID.fullmatch(dataset_id):
        return fingerprint
    path = datasets_root().absolute() / dataset_id
    try:
        return _hash(path, fingerprint) if open_dataset(path).fingerprint == fingerprint else fingerprint
    except (DataError, OSError):
        return fingerprint


@lru_cache(maxsize=64)
def _hash(path: Path, fingerprint: str) -> str:
    dataset = open_dataset(path)
    ids, digest = dataset.tokens("val"), hashlib.sha256()
    for begin in range(0, len(ids), _HASHED_AT_ONCE):
        digest.update(b"".join(map(dataset.tokenizer.token_bytes, ids[begin : begin + _HASHED_AT_ONCE].tolist())))
    return digest.hexdigest()


__all__ = ["of_run", "of_runs", "saved", "text_sha256"]
