"""What every single token of a text costs a model, in nats: the ground that comparisons stand on.

Windows, batches and the model's own loss are those of `dgsgpt.evaluation.perplexity`, so that the figures of a whole
text are bit for bit what `evaluate_text` gives; the nats of the tokens add up to them but for rounding in float32.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch

from dgsgpt import format as fmt
from dgsgpt.data.loader import Batch
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.evaluation.judging import NONE_JUDGED, Floats, Judged, judge_batch, judging
from dgsgpt.evaluation.perplexity import Evaluation, OnBatch, Rules, Tokens, check_vocabulary, summarise
from dgsgpt.evaluation.sliding import sliding_windows, window_of

if TYPE_CHECKING:
    from dgsgpt.model import GPT

Integers = npt.NDArray[np.int64]

BLOCK_BYTES = 512
MOST_BLOCKS = 1000  # more would make the draws slow and the blocks no more independent


@dataclass(frozen=True)
class TokenText:
    """A text in the tokens of one tokenizer; byte places count the UTF-8 of `data`, which is the text itself."""

    tokenizer: Tokenizer
    ids: npt.NDArray[Any]  # [n]
    ends: Integers  # [n] the byte after each token
    data: bytes
    document_starts: Integers | None

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str, document_separator: str | None = None) -> Self:
        """Encoded as a dataset is.

        Raises:
            DataError: it has characters that the tokenizer does not know.
        """
        tokens = Tokens.of(tokenizer, text, document_separator)
        pieces = [tokenizer.token_bytes(token) for token in tokens.ids.tolist()]
        ends = np.cumsum(tokenizer.byte_lengths[tokens.ids], dtype=np.int64)
        return cls(tokenizer, tokens.ids, ends, b"".join(pieces), tokens.document_starts)

    @property
    def bytes_per_token(self) -> float:
        """Mean length of a token; NaN without tokens."""
        return len(self.data) / len(self.ids) if len(self.ids) else float("nan")


@dataclass(frozen=True)
class Scores:
    """Every predicted token of a text, in the text's order: n tokens.

    `places` count from 0 in a token's window: the token at place p was predicted from p + 1 others, or, in a text
    divided into documents, from those among them that are of its predecessor's document: `seen`. `windows` are the
    numbers of the windows in the text; where only some were read, numbers are missing. `top` is the probability of the
    token that the model found likeliest, and `right` whether that was the one. `windows_sha256` is over the windows as
    read: of each, its number of tokens and then the tokens (the first is only read, the others predicted), all as
    little-endian 32-bit numbers.
    """

    ids: Integers  # [n]
    nats: Floats  # [n] -log p
    begins: Integers  # [n] first byte
    ends: Integers  # [n] the byte after
    places: Integers  # [n]
    windows: Integers  # [n]
    seen: Integers  # [n]
    top: npt.NDArray[np.float32]  # [n]
    right: npt.NDArray[np.bool_]  # [n]
    block_size: int
    stride: int
    evaluation: Evaluation
    windows_sha256: str
    data: bytes


def score_text(
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
) -> Scores:
    """The nats of every token of `text`; settings as in `evaluate_text`.

    Memory: where the vocabulary is large, only as many rows of logits exist at once as in training.

    Raises:
        DataError: the text has fewer than two tokens, or tokens that the tokenizer or the model does not know.
    """
    given = TokenText.of(tokenizer, text, document_separator)
    return score_tokens(
        model, given, block_size=block_size, stride=stride, max_tokens=max_tokens, batch_size=batch_size,
        device=device, on_batch=on_batch,
    )  # fmt: skip


def score_tokens(
    model: GPT,
    text: TokenText,
    *,
    block_size: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    on_batch: OnBatch | None = None,
) -> Scores:
    """`score_text` of a text that is in tokens already.

    Raises:
        DataError: as `score_text`.
    """
    rules = Rules.of(model, block_size, max_tokens, batch_size, device, stride)
    check_vocabulary(model, text.tokenizer, text.ids)
    size, step = rules.within(len(text.ids))
    total = min(max_tokens or len(text.ids) - 1, len(text.ids) - 1)
    # Windows over the places of the tokens instead of the tokens: so it is known where each one is.
    everywhere = sliding_windows(
        np.arange(len(text.ids)), size, step, max_tokens, batch_size=rules.batch_size,
        document_starts=text.document_starts,
    )  # fmt: skip
    sha, at, judged, whole, done = hashlib.sha256(), [np.zeros(0, np.int64)], [NONE_JUDGED], 0.0, 0
    with judging(model):
        for batch, count in everywhere:
            tokens = _tokens_of(batch, text.ids)
            _hash_windows(sha, tokens)
            loss, found = judge_batch(model, tokens, rules.device)
            whole += loss * count
            at.append(batch.targets[batch.targets >= 0].numpy())
            judged.append(found)
            done += count
            if on_batch is not None:
                on_batch(done, total)
    return _scores(text, np.concatenate(at), judged, (size, step), whole, sha.hexdigest())


def _scores(
    text: TokenText, at: Integers, judged: Sequence[Judged], rule: tuple[int, int], whole: float, sha256: str
) -> Scores:
    ids = text.ids[at].astype(np.int64)
    lengths = text.tokenizer.byte_lengths[ids]
    windows = window_of(at, *rule)
    begun = windows * rule[1]
    seen_from = begun
    if text.document_starts is not None:
        own = text.document_starts[np.searchsorted(text.document_starts, at - 1, side="right") - 1]
        seen_from = np.maximum(begun, own)
    nats, top, right = (np.concatenate(parts) for parts in zip(*judged, strict=True))
    return Scores(
        ids=ids,
        nats=nats,
        begins=text.ends[at] - lengths,
        ends=text.ends[at],
        places=at - 1 - begun,
        windows=windows,
        seen=at - seen_from,
        top=top,
        right=right,
        block_size=rule[0],
        stride=rule[1],
        evaluation=summarise(whole, len(ids), int(lengths.sum()), *rule),
        windows_sha256=sha256,
        data=text.data,
    )


def _tokens_of(places: Batch, ids: npt.NDArray[Any]) -> Batch:
    """A batch of places as a batch of the tokens there, padded in the same way."""
    x, y = (torch.from_numpy(ids[t.clamp(min=0).numpy()].astype(np.int64)) for t in (places.inputs, places.targets))
    read = torch.arange(x.size(1)) < torch.from_numpy(_lengths(places))[:, None]
    return Batch(x.masked_fill_(~read, 0), torch.where(places.targets < 0, places.targets, y), places.documents)


def _lengths(batch: Batch) -> Integers:
    """Of each window the number of tokens it reads, up to that before the last target; [B]."""
    judged = batch.targets.numpy() >= 0
    lengths: Integers = (judged * np.arange(1, judged.shape[1] + 1)).max(1)
    return lengths


def _hash_windows(sha: hashlib._Hash, batch: Batch) -> None:
    x, y = batch.inputs.numpy(), batch.targets.numpy()
    for row, count in enumerate(_lengths(batch).tolist()):
        if count:
            sha.update(np.array([count + 1, *x[row, :count], y[row, count - 1]], dtype="<u4").tobytes())


# ---------------------------------------------------------------- blocks
@dataclass(frozen=True)
class Blocks:
    """A text in `count` blocks: for each model, of its tokens the number of their block, -1 for none."""

    of: tuple[Integers, ...]  # one [n] for each model
    count: int
    bytes: Floats  # [count]
    rule: str

    def sums(self, scores: Sequence[Scores], keep: npt.NDArray[np.bool_] | None = None) -> Floats:
        """Nats of each block and model, [count, models], of all tokens or those to keep."""
        columns = []
        for number, score in zip(self.of, scores, strict=True):
            use = number >= 0 if keep is None else keep
            columns.append(np.bincount(number[use], weights=score.nats[use], minlength=self.count))
        return np.stack(columns, axis=1)

    def counts(self, keep: npt.NDArray[np.bool_]) -> Floats:
        """Tokens to keep in each block, [count], where all models have the same."""
        return np.bincount(self.of[0][keep], minlength=self.count).astype(np.float64)


def window_blocks(scores: Sequence[Scores]) -> Blocks:
    """Blocks of whole windows, where all models read the same ones."""
    first = scores[0]
    windows_read, number = np.unique(first.windows, return_inverse=True)
    per_window = max(1.0, first.stride * first.evaluation.bytes / first.evaluation.tokens)
    group = max(math.ceil(BLOCK_BYTES / per_window), math.ceil(len(windows_read) / MOST_BLOCKS))
    number = number.astype(np.int64) // group
    count = int(number[-1]) + 1
    size = np.bincount(number, weights=first.ends - first.begins, minlength=count).astype(np.float64)
    return Blocks((number,) * len(scores), count, size, f"a block is {fmt.plural(group, 'whole window')}")


def byte_blocks(scores: Sequence[Scores]) -> Blocks:
    """Blocks of the same bytes for all, at least as long as a window: cut where each has the end of a token."""
    cuts = reduce(np.intersect1d, [np.append(score.begins[0], score.ends) for score in scores])
    context = max(score.block_size * score.evaluation.bytes / score.evaluation.tokens for score in scores)
    length = max(BLOCK_BYTES, context, len(scores[0].data) / MOST_BLOCKS)
    if len(cuts):
        cuts = np.unique(np.append(cuts[np.searchsorted(cuts, np.arange(cuts[0], cuts[-1], length))], cuts[-1]))
    count = max(0, len(cuts) - 1)
    numbers = [np.searchsorted(cuts, score.ends) - 1 for score in scores]
    of = tuple(np.where(number < count, number, -1) for number in numbers)
    rule = f"a block is about {fmt.number(length)} bytes, cut where all have the end of a token"
    return Blocks(of, count, np.diff(cuts).astype(np.float64), rule)


__all__ = ["Blocks", "Floats", "Scores", "TokenText", "byte_blocks", "score_text", "score_tokens", "window_blocks"]
