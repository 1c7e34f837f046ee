"""How much each token of a text surprises a model: -log p, with what it would rather have said there.

Figures are the model's own, at temperature 1 and before any filter. Texts longer than the context are read in windows
that overlap by half, so that every token but those at the beginning has at least half a context before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.evaluation.perplexity import check_vocabulary
from dgsgpt.evaluation.sliding import sliding_windows
from dgsgpt.generation.context import context_lead
from dgsgpt.inspect.reading import label_of, reach

if TYPE_CHECKING:
    from dgsgpt.model import GPT

MOST_TOKENS = 2048
LIKELIEST = 4
_CHARACTERS_PER_TOKEN = 16  # of a huge text only so much is encoded: no tokenizer has more on average
_BATCH_TOKENS, _LOGITS = 4096, 1 << 22


@dataclass(frozen=True)
class Piece:
    """Whole characters of the text from `start` to `end`, and the tokens that end in them.

    `nats` is the sum of their -log p, None where nothing came before. `likeliest` are the model's first choices in
    place of the first of the tokens, as (name, probability).
    """

    text: str
    start: int
    end: int
    ids: tuple[int, ...]
    nats: float | None
    likeliest: tuple[tuple[str, float], ...] = ()

    @property
    def probability(self) -> float | None:
        """Of all its tokens together."""
        return None if self.nats is None else math.exp(-self.nats)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "text": self.text, "start": self.start, "end": self.end, "ids": list(self.ids), "nats": self.nats,
            "p": self.probability, "likeliest": [{"text": name, "p": p} for name, p in self.likeliest],
        }  # fmt: skip


@dataclass(frozen=True)
class Surprise:
    """A text in pieces, and its sums over the `tokens` that were predicted, which stand for `bytes` of it.

    Only the first `characters` of the text's `whole` were judged where it is long.
    """

    pieces: tuple[Piece, ...]
    tokens: int
    bytes: int
    nats: float
    context: int
    stride: int
    characters: int
    whole: int

    @property
    def loss(self) -> float:
        """Mean nats per token."""
        return self.nats / self.tokens

    @property
    def ppl(self) -> float:
        """The exponential of the loss."""
        return math.inf if self.loss >= 700 else math.exp(self.loss)

    @property
    def bpb(self) -> float:
        """Bits per UTF-8 byte, which compare across tokenizers; NaN if the tokens have none."""
        return self.nats / math.log(2) / self.bytes if self.bytes else math.nan

    def hardest(self, count: int = 8) -> list[Piece]:
        """The pieces with the most nats, the first of them first."""
        known = [piece for piece in self.pieces if piece.nats is not None]
        return sorted(known, key=lambda piece: -(piece.nats or 0.0))[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "loss": self.loss, "ppl": self.ppl, "bpb": self.bpb, "nats": self.nats, "tokens": self.tokens,
            "bytes": self.bytes, "context": self.context, "stride": self.stride, "characters": self.characters,
            "of_characters": self.whole, "pieces": [piece.to_dict() for piece in self.pieces],
        }  # fmt: skip


def surprise(
    model: GPT, tokenizer: Tokenizer, text: str, *, max_tokens: int = MOST_TOKENS, likeliest: int = LIKELIEST
) -> Surprise:
    """What each of the first `max_tokens` tokens of `text` costs `model`.

    Raises:
        DataError: the text is empty, has a single token with nothing to predict it from, or has characters that the
            tokenizer does not know.
        DgsgptError: the model gives logits that are not numbers.
    """
    if not text:
        raise DataError("the text is empty; give a sentence or two")
    lead = context_lead(tokenizer, model.config.block_size)
    own = _first_tokens(tokenizer, text, max_tokens)
    ids = np.array([*lead, *own], dtype=np.int64)
    check_vocabulary(model, tokenizer, ids)
    size = min(model.config.block_size, len(ids) - 1)
    stride = size if size == len(ids) - 1 else max(1, size // 2)
    judged = [
        part
        for batch in _batches(ids, size, stride)
        for part in _judge(model, tokenizer.vocab_size, ids, batch, likeliest)
    ]
    nats = np.array([cost for cost, _ in judged])
    if not np.isfinite(nats).all():
        raise DgsgptError("the model gave logits that are not numbers; its weights are damaged or training diverged")
    beginning: list[Judged] = [] if lead else [(None, ())]  # nothing comes before the first token
    pieces = tuple(_pieces(tokenizer, own, [*beginning, *judged]))
    size_bytes = int(tokenizer.byte_lengths[ids[1:]].sum())
    return Surprise(pieces, len(nats), size_bytes, float(nats.sum()), size, stride, pieces[-1].end, len(text))


def _first_tokens(tokenizer: Tokenizer, text: str, count: int) -> list[int]:
    """The first tokens of a text, fewer where the last would end inside a character."""
    ids = tokenizer.encode(text[: count * _CHARACTERS_PER_TOKEN])
    while 0 < count < len(ids) and _continues(tokenizer.token_bytes(ids[count])):
        count -= 1
    return ids[:count]


def _continues(raw: bytes) -> bool:
    """Whether bytes begin inside a character."""
    return bool(raw) and raw[0] & 0xC0 == 0x80


# ---------------------------------------------------------------- two models
@dataclass(frozen=True)
class Pair:
    """A stretch of text that ends where a token of both models ends, and what each paid for it, in nats.

    Both are None where one of them had nothing before it.
    """

    text: str
    start: int
    end: int
    a: float | None
    b: float | None

    @property
    def gap(self) -> float:
        """Nats that A paid more than B: positive where B predicts better."""
        return 0.0 if self.a is None or self.b is None else self.a - self.b

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {"text": self.text, "start": self.start, "end": self.end, "nats_a": self.a, "nats_b": self.b}


def pair(a: Surprise, b: Surprise) -> tuple[Pair, ...]:
    """One text judged by two models, cut where tokens of both end: they need not have the same tokenizer."""
    ends = sorted({piece.end for piece in a.pieces} & {piece.end for piece in b.pieces})
    text = "".join(piece.text for piece in a.pieces)
    found = []
    for begin, end, x, y in zip([0, *ends[:-1]], ends, _sums(a, ends), _sums(b, ends), strict=True):
        known = x is not None and y is not None
        found.append(Pair(text[begin:end], begin, end, x if known else None, y if known else None))
    return tuple(found)


def _sums(found: Surprise, ends: Sequence[int]) -> list[float | None]:
    """Nats up to each end from the one before; None where a token was not predicted."""
    sums: list[float | None] = []
    pieces = iter(found.pieces)
    for end in ends:
        costs: list[float | None] = []
        for piece in pieces:
            costs.append(piece.nats)
            if piece.end == end:
                break
        sums.append(None if None in costs else sum(cost for cost in costs if cost is not None))
    return sums


# ---------------------------------------------------------------- judging
Places = tuple[Tensor, Tensor]
Likeliest = tuple[tuple[int, float], ...]
Judged = tuple[float | None, Likeliest]


def _batches(ids: npt.NDArray[np.int64], size: int, stride: int) -> Iterator[Places]:
    """Places of inputs and targets [B, T], so that it is known which token each target is; others are -100."""
    batch_size = max(1, min(16, _BATCH_TOKENS // size))
    for batch, _ in sliding_windows(np.arange(len(ids)), size, stride, batch_size=batch_size):
        yield batch.inputs, batch.targets


@torch.inference_mode()
def _judge(model: GPT, vocab_size: int, ids: npt.NDArray[np.int64], places: Places, likeliest: int) -> list[Judged]:
    """Nats and likeliest tokens of each target of a batch, in the text's order."""
    inputs, targets = places
    all_ids, device = torch.from_numpy(ids), next(model.parameters()).device
    (states,) = reach(model, all_ids[inputs].to(device), model.norm)
    real = targets >= 0
    labels = all_ids[targets[real]].to(device)
    rows = model.norm(states)[real.to(device)]
    matrix = model.head.matrix(model.embed.weight)
    at_once = max(1, _LOGITS // len(matrix))  # so that the logits of a large vocabulary do not all exist at once
    found: list[Judged] = []
    for some, wanted in zip(rows.split(at_once), labels.split(at_once), strict=True):
        logs = model.head.logits(some, matrix).float().log_softmax(-1)
        nats = -logs.gather(1, wanted[:, None])[:, 0]
        best, which = logs[:, :vocab_size].topk(min(likeliest, vocab_size), dim=-1)
        choices = zip(which.tolist(), best.exp().tolist(), strict=True)
        found += [
            (cost, tuple(zip(tokens, shares, strict=True)))
            for cost, (tokens, shares) in zip(nats.tolist(), choices, strict=True)
        ]
    return found


# ---------------------------------------------------------------- cutting
def _pieces(tokenizer: Tokenizer, ids: Sequence[int], judged: Sequence[Judged]) -> Iterator[Piece]:
    """Pieces of whole characters: tokens that end inside a character are joined with the next."""
    raws = [tokenizer.token_bytes(token) for token in ids]
    named = lru_cache(maxsize=None)(lambda token: label_of(tokenizer, token))
    at, begun = 0, 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and _continues(raws[end]):
            continue
        text = b"".join(raws[begun:end]).decode("utf-8", "replace")
        costs = [nats for nats, _ in judged[begun:end] if nats is not None]
        choices = tuple((named(token), share) for token, share in judged[begun][1])
        yield Piece(text, at, at + len(text), tuple(ids[begun:end]), sum(costs) if costs else None, choices)
        at, begun = at + len(text), end


__all__ = ["LIKELIEST", "MOST_TOKENS", "Pair", "Piece", "Surprise", "pair", "surprise"]
