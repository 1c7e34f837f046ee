"""Loss, perplexity and bits per byte over a whole text, the same on every call.

The text is cut into windows of `block_size` predictions: each token is predicted exactly once, except the first, which
nothing precedes. A window sees nothing before its own start, so a longer context gives a better figure, and so does a
shorter `stride`, with which windows overlap (see `dgsgpt.evaluation.sliding`). Where the text was divided into
documents, a window sees nothing of another one, as in training. Bits per byte count the UTF-8 bytes of the predicted
tokens only and compare across tokenizers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from dgsgpt.data.dataset import Dataset
from dgsgpt.data.text import split_documents
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError
from dgsgpt.evaluation.sliding import check_stride, sliding_windows

if TYPE_CHECKING:
    from dgsgpt.model import GPT

OnBatch = Callable[[int, int], None]

# Tokens in one forward pass, by default: enough to keep a processor busy, small enough for its logits.
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Evaluation:
    """Result over `tokens` predicted tokens, which stand for `bytes` of text.

    `loss` is the mean in nats per token, `ppl` its exponential, `bpb` the bits per byte (NaN if the tokens have none).
    `context` and `stride` are those of the windows read, in tokens: no longer than the text. They are 0 in results
    that were kept before there was a stride.
    """

    loss: float
    ppl: float
    bpb: float
    tokens: int
    bytes: int
    context: int = 0
    stride: int = 0

    def to_dict(self) -> dict[str, float | int]:
        """Plain values by name."""
        return asdict(self)


def evaluate(
    model: GPT,
    dataset: Dataset,
    *,
    block_size: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    on_batch: OnBatch | None = None,
    split: str = "val",
) -> Evaluation:
    """Judge `model` on the validation split (or `split`) of `dataset`.

    `block_size` is by default the model's context, `stride` is `block_size`, `device` where the model is, and a batch
    about 8,192 tokens.
    `max_tokens` predicts only that many, spread evenly over the split. `on_batch(tokens done, tokens in all)` is
    called after each batch. The caller chooses the precision by `torch.autocast` around the call.

    Raises:
        DataError: the split is too short, its vocabulary is larger than the model's, or a setting is out of its range.
    """
    rules = Rules.of(model, block_size, max_tokens, batch_size, device, stride)
    text = Tokens(dataset.tokenizer, dataset.tokens(split), dataset.document_starts(split))
    return _evaluate(model, text, rules, on_batch)


def evaluate_text(
    model: GPT,
    tokenizer: Tokenizer,
    text: str,
    *,
    block_size: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    on_batch: OnBatch | None = None,
    document_separator: str | None = None,
) -> Evaluation:
    """Judge `model` on any text, as `evaluate` does on a dataset that was prepared with this `document_separator`.

    Raises:
        DataError: the text has fewer than two tokens or characters that the tokenizer does not know, or a setting is
            out of its range.
    """
    rules = Rules.of(model, block_size, max_tokens, batch_size, device, stride)
    return _evaluate(model, Tokens.of(tokenizer, text, document_separator), rules, on_batch)


@dataclass(frozen=True)
class Tokens:
    """A text as token ids, and where its documents begin if it has been divided."""

    tokenizer: Tokenizer
    ids: npt.NDArray[Any]
    document_starts: npt.NDArray[np.int64] | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str, separator: str | None) -> Self:
        """Encoded as a dataset is."""
        documents = [tokenizer.encode_array(document) for document in split_documents(text, separator)]
        ids = np.concatenate(documents) if documents else np.zeros(0, np.uint32)
        starts = np.cumsum([0, *map(len, documents[:-1])], dtype=np.int64)
        return cls(tokenizer, ids, None if separator is None else starts)


@dataclass(frozen=True)
class Rules:
    """How a text is read; lengths in tokens."""

    block_size: int
    stride: int
    max_tokens: int | None
    batch_size: int
    device: torch.device

    @classmethod
    def of(
        cls,
        model: GPT,
        block_size: int | None,
        max_tokens: int | None,
        batch_size: int | None,
        device: torch.device | str | None,
        stride: int | None = None,
    ) -> Self:
        """The settings with their defaults filled in.

        Raises:
            DataError: one is out of its range.
        """
        for name, value in (("block_size", block_size), ("max_tokens", max_tokens), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise DataError(f"{name}={value} must be at least 1")
        size = block_size or model.config.block_size
        place = torch.device(device) if device is not None else next(model.parameters()).device
        batch = batch_size or max(1, min(64, _BATCH_TOKENS // size))
        return cls(size, check_stride(stride, size), max_tokens, batch, place)

    def within(self, tokens: int) -> tuple[int, int]:
        """Context and stride for a text of that many tokens: a window longer than it would be padding."""
        size = min(self.block_size, tokens - 1)
        return size, min(self.stride, size)


def _evaluate(model: GPT, text: Tokens, rules: Rules, on_batch: OnBatch | None) -> Evaluation:
    ids = text.ids
    check_vocabulary(model, text.tokenizer, ids)
    context, stride = rules.within(len(ids))
    total = min(rules.max_tokens or len(ids) - 1, len(ids) - 1)
    nats, tokens, size = 0.0, 0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch, count in sliding_windows(
                ids, context, stride, rules.max_tokens, batch_size=rules.batch_size,
                document_starts=text.document_starts,
            ):  # fmt: skip
                x, y, documents = (None if t is None else t.to(rules.device) for t in batch)
                loss = model(x, y, documents=documents).loss
                nats += float(loss.double()) * count  # a Python float: sums are in 64 bits
                tokens += count
                real = batch.targets[batch.targets >= 0]
                size += int(text.tokenizer.byte_lengths[real.numpy()].sum())
                if on_batch is not None:
                    on_batch(tokens, total)
    finally:
        model.train(was_training)
    return summarise(nats, tokens, size, context, stride)


def summarise(nats: float, tokens: int, size: int, context: int, stride: int) -> Evaluation:
    """An evaluation from the sum of the tokens' nats and of their bytes."""
    loss = nats / tokens
    ppl = math.inf if loss >= 700 else math.exp(loss)  # exp overflows; NaN stays NaN
    return Evaluation(loss, ppl, nats / math.log(2) / size if size else math.nan, tokens, size, context, stride)


def check_vocabulary(model: GPT, tokenizer: Tokenizer, ids: npt.NDArray[Any]) -> None:
    if len(ids) < 2:
        raise DataError(f"the text has {len(ids)} tokens; at least 2 are needed to judge a prediction")
    rows = model.config.vocab_size or 0
    if tokenizer.vocab_size > rows and int(np.max(ids)) >= rows:
        raise DataError(
            f"the text has token id {int(np.max(ids))}, but the model knows {rows}; "
            "use the tokenizer the model was trained with"
        )


__all__ = ["Evaluation", "evaluate", "evaluate_text"]
