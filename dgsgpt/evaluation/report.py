"""Everything one pass over a text tells of a model: its figures, and where they come from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dgsgpt.data.dataset import list_datasets
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError
from dgsgpt.evaluation.breakdown import Bin, Group, Passage, by_frequency, by_position, calibration, passages
from dgsgpt.evaluation.context import extended
from dgsgpt.evaluation.perplexity import Evaluation, OnBatch
from dgsgpt.evaluation.scores import Integers, score_text
from dgsgpt.evaluation.sliding import check_stride, forward_tokens

if TYPE_CHECKING:
    from dgsgpt.data.dataset import Dataset
    from dgsgpt.model import GPT

_COUNTED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Frequencies:
    """How often each token occurs in some text: `counts` [V], and in words which text that is."""

    counts: Integers
    of: str


@dataclass(frozen=True)
class Report:
    """What `evaluate_fully` found.

    `context` and `stride` are as asked; a text shorter than them was read in one window. `forward_tokens` is what the
    model read, `accuracy` how often its likeliest token was right, `calibration_error` the expected one (0 to 1).
    `by_position` goes by the number of tokens before, `by_frequency` by occurrences in what `frequency_rule` names.
    `text_sha256` and `text_bytes` are of the whole text that was given, as the tokenizer keeps it; with `max_tokens`
    only a part of it was judged.
    """

    evaluation: Evaluation
    context: int
    stride: int
    max_tokens: int | None
    forward_tokens: int
    accuracy: float
    calibration_error: float
    by_position: tuple[Group, ...]
    by_frequency: tuple[Group, ...]
    frequency_rule: str
    hardest: tuple[Passage, ...]
    easiest: tuple[Passage, ...]
    calibration: tuple[Bin, ...]
    text_sha256: str
    text_bytes: int

    def figures(self) -> dict[str, float | int | None]:
        """Loss, ppl, bpb, tokens, bytes, context and stride; None where there is no finite number."""
        values = {**self.evaluation.to_dict(), "context": self.context, "stride": self.stride}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        groups = ("by_position", "by_frequency", "hardest", "easiest", "calibration")
        plain = ("max_tokens", "forward_tokens", "accuracy", "calibration_error")
        text = ("frequency_rule", "text_sha256", "text_bytes")
        return {
            **self.figures(),
            **{name: getattr(self, name) for name in plain},
            **{name: [part.to_dict() for part in getattr(self, name)] for name in groups},
            **{name: getattr(self, name) for name in text},
        }


def evaluate_fully(
    model: GPT,
    tokenizer: Tokenizer,
    text: str,
    *,
    context: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    document_separator: str | None = None,
    frequencies: Frequencies | None = None,
    on_batch: OnBatch | None = None,
) -> Report:
    """Judge `model` on `text`, in one pass; the figures are those of `evaluate_text` with the same settings.

    `context` and `stride` are in tokens, by default the model's context and as much (see `dgsgpt.evaluation.sliding`).
    `frequencies` are best those of the training text (`training_frequencies`); without, tokens are counted in `text`.
    `on_batch(tokens done, tokens in all)` is called after each batch; what it raises ends the evaluation and leaves the
    model as it was. Memory is about a hundred bytes a token, and the logits of one batch or a part of it.

    Raises:
        DataError: a text of fewer than two tokens, or with characters that the tokenizer does not know; a setting out
            of its range; predictions that are not numbers.
        ConfigError: `context` is below 1, or more than the model can read.
    """
    window = model.config.block_size if context is None else context
    model = extended(model, window)
    step = check_stride(stride, window)
    scores = score_text(
        model, tokenizer, text, block_size=window, stride=step, max_tokens=max_tokens, batch_size=batch_size,
        device=device, on_batch=on_batch, document_separator=document_separator,
    )  # fmt: skip
    if not np.isfinite(scores.nats).all():
        raise DataError(
            "the model's predictions are not numbers, so its weights are damaged or its training diverged; use an "
            "earlier checkpoint"
        )
    own = Frequencies(np.bincount(scores.ids, minlength=tokenizer.vocab_size), "the text itself")
    frequencies = frequencies or own
    bins, error = calibration(scores)
    hardest, easiest = passages(scores)
    return Report(
        evaluation=scores.evaluation,
        context=window,
        stride=step,
        max_tokens=max_tokens,
        forward_tokens=forward_tokens(len(scores.ids), scores.block_size, scores.stride),
        accuracy=float(scores.right.mean()),
        calibration_error=error,
        by_position=by_position(scores),
        by_frequency=by_frequency(scores, frequencies.counts),
        frequency_rule=frequencies.of,
        hardest=hardest,
        easiest=easiest,
        calibration=bins,
        text_sha256=hashlib.sha256(scores.data).hexdigest(),
        text_bytes=len(scores.data),
    )


def training_frequencies(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> Frequencies | None:
    """How often each token occurs in the training split that a checkpoint of this `metadata` learned from.

    None where that dataset is not kept here any more, or was made with another tokenizer.

    Raises:
        DataError: its files are damaged.
    """
    wanted = (metadata.get("data_fingerprint"), tokenizer.sha256)
    for dataset in list_datasets():
        if (dataset.fingerprint, dataset.meta["tokenizer_sha256"]) == wanted:
            return Frequencies(_count(dataset, tokenizer.vocab_size), f"the training split of {dataset.id}")
    return None


def _count(dataset: Dataset, vocab_size: int) -> Integers:
    ids = dataset.tokens("train")
    counts = np.zeros(vocab_size, np.int64)
    for begin in range(0, len(ids), _COUNTED_AT_ONCE):
        part = np.bincount(ids[begin : begin + _COUNTED_AT_ONCE], minlength=vocab_size)
        if len(part) > vocab_size:
            raise DataError(f"{dataset.path}: token id {len(part) - 1} is outside its vocabulary; prepare it again")
        counts += part
    return counts


__all__ = ["Frequencies", "Report", "evaluate_fully", "training_frequencies"]
