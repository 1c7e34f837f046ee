"""Two to four models on the same text: by how much they differ, and how sure that is.

With one tokenizer all models read identical windows, as long as the shortest context among them. With several, each
reads its own tokens, in windows of about as many bytes, and they are compared in bits per byte over the same bytes.

The difference is paired: it is taken passage by passage, so that how hard a passage is cancels out. Its 95 % interval
is the percentile bootstrap (Efron & Tibshirani 1993, chapter 13) over blocks of text. Tokens near each other are alike,
so a block is a whole window, or several where windows are short (Kuensch 1989 on why single tokens would not do).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt
import torch

from dgsgpt import format as fmt
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError
from dgsgpt.evaluation.outcome import (
    DRAWS,
    LEAST_BLOCKS,
    Comparison,
    Difference,
    Figures,
    Pair,
    Span,
    bootstrap,
    differences_of,
    verdict_of,
)
from dgsgpt.evaluation.perplexity import OnBatch
from dgsgpt.evaluation.scores import Blocks, Floats, Scores, TokenText, byte_blocks, score_tokens, window_blocks

if TYPE_CHECKING:
    from dgsgpt.model import GPT

LETTERS = "ABCD"
MAX_TOKENS = 100_000
FEW_BLOCKS = 30
RARE_SHARE, LATE_PLACE = 0.10, 0.75
CAVEAT = (
    "The interval is about the text: how much the difference would vary on other passages of the same kind. It does "
    "not cover training again with another seed, which can move either model by more than that."
)


# ---------------------------------------------------------------- what goes in
@dataclass(frozen=True)
class Subject:
    """A model to compare; `opened` gives it for as long as it is needed, so that not all need be in memory at once."""

    name: str
    tokenizer: Tokenizer
    block_size: int
    opened: Callable[[], AbstractContextManager[GPT]]

    @classmethod
    def of(cls, name: str, model: GPT, tokenizer: Tokenizer) -> Self:
        """A model that is in memory anyway."""
        return cls(name, tokenizer, model.config.block_size, lambda: nullcontext(model))


# ---------------------------------------------------------------- comparing
def compare(
    subjects: Sequence[Subject],
    text: str,
    *,
    max_tokens: int | None = MAX_TOKENS,
    document_separator: str | None = None,
    device: torch.device | str | None = None,
    on_batch: OnBatch | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare 2 to 4 models on `text`, each with the first.

    Of a longer text `max_tokens` are predicted: in windows spread evenly over it, or, where tokenizers differ, at its
    beginning. `on_batch(tokens done, tokens in all)` is called after each batch. The same input gives the same figures.

    Raises:
        DataError: not 2 to 4 models, a text that is too short or that a tokenizer or model cannot take, a model that
            gives NaN.
    """
    if not 2 <= len(subjects) <= len(LETTERS):
        raise DataError(f"{len(subjects)} models cannot be compared; give 2 to {len(LETTERS)}")
    for name, value in (("max_tokens", max_tokens), ("draws", draws)):
        if value is not None and value < 1:
            raise DataError(f"{name}={value} must be at least 1")
    same = len({subject.tokenizer.sha256 for subject in subjects}) == 1
    texts = _texts(subjects, text, document_separator, None if same else max_tokens)
    sizes = _block_sizes(subjects, texts)
    scores = _score(subjects, texts, sizes, max_tokens if same else None, device, on_batch)
    blocks = window_blocks(scores) if same else byte_blocks(scores)
    if blocks.count < LEAST_BLOCKS:
        raise DataError(
            f"the text gives {fmt.plural(blocks.count, 'block')} ({blocks.rule}), an interval needs at least "
            f"{LEAST_BLOCKS}; use a longer text or raise max_tokens"
        )
    whole = len(text.encode()) == len(scores[0].data) and len(scores[0].ids) == len(texts[0].ids) - 1
    part = "windows spread evenly over the text" if same else "the beginning of the text"
    text_rule = "the whole text" if whole else part
    return _comparison(subjects, scores, blocks, text_rule, draws, seed)


def _texts(subjects: Sequence[Subject], text: str, separator: str | None, most: int | None) -> list[TokenText]:
    """The text in each one's tokens, first cut after `most` predictions of the first."""
    first = subjects[0]
    with _blaming(first):
        own = TokenText.of(first.tokenizer, text, separator)
        if most is not None and len(own.ids) > most + 1:
            text = own.data[: own.ends[most]].decode("utf-8", "ignore")
            own = TokenText.of(first.tokenizer, text, separator)
    made = {first.tokenizer.sha256: own}
    for subject in subjects[1:]:
        if subject.tokenizer.sha256 in made:
            continue
        with _blaming(subject):
            other = made[subject.tokenizer.sha256] = TokenText.of(subject.tokenizer, text, separator)
        if other.data != own.data:
            raise DataError(
                f"{subject.name}: its tokenizer does not give this text back byte for byte as that of {first.name} "
                "does; compare models of one tokenizer, or on another text"
            )
    return [made[subject.tokenizer.sha256] for subject in subjects]


def _block_sizes(subjects: Sequence[Subject], texts: Sequence[TokenText]) -> list[int]:
    """Windows of as many bytes for all as the shortest context holds: with one tokenizer, of as many tokens."""
    lengths = [text.bytes_per_token for text in texts]
    room = min(s.block_size * length for s, length in zip(subjects, lengths, strict=True))
    if not room > 0:  # no tokens at all: told where they are scored
        return [subject.block_size for subject in subjects]
    return [max(1, int(room / length + 1e-9)) for length in lengths]


def _score(
    subjects: Sequence[Subject], texts: Sequence[TokenText], sizes: Sequence[int], max_tokens: int | None,
    device: torch.device | str | None, on_batch: OnBatch | None,
) -> list[Scores]:  # fmt: skip
    amounts = [max(0, min(max_tokens or len(text.ids), len(text.ids) - 1)) for text in texts]
    scores: list[Scores] = []
    for subject, text, size in zip(subjects, texts, sizes, strict=True):
        before = sum(amounts[: len(scores)])

        def tell(done: int, total: int, before: int = before) -> None:
            if on_batch is not None:
                on_batch(before + done, sum(amounts))

        with _blaming(subject), subject.opened() as model:
            found = score_tokens(model, text, block_size=size, max_tokens=max_tokens, device=device, on_batch=tell)
        if not np.isfinite(found.nats).all():
            raise DataError(
                f"{subject.name}: its predictions are not numbers, so its weights are damaged or its training "
                "diverged; use an earlier checkpoint"
            )
        scores.append(found)
    return scores


@contextmanager
def _blaming(subject: Subject) -> Iterator[None]:
    try:
        yield
    except DataError as e:
        raise DataError(f"{subject.name}: {e}") from None


# ---------------------------------------------------------------- figures and verdicts
def _comparison(
    subjects: Sequence[Subject], scores: Sequence[Scores], blocks: Blocks, text_rule: str, draws: int, seed: int
) -> Comparison:
    same = len({subject.tokenizer.sha256 for subject in subjects}) == 1
    rare, rare_rule = _rare(scores[0]) if same else (None, None)
    parts = {"bpb": (blocks.sums(scores) / math.log(2), blocks.bytes)}
    if same:
        late = scores[0].places >= LATE_PLACE * scores[0].block_size
        chosen = {"loss": np.ones_like(late), "late": late} | ({} if rare is None else {"rare": rare})
        parts |= {name: (blocks.sums(scores, keep), blocks.counts(keep)) for name, keep in chosen.items()}
    found = {name: differences_of(*part, draws, seed) for name, part in parts.items()}
    means = {name: sums.sum(0) / sizes.sum() for name, (sums, sizes) in parts.items() if sizes.any()}
    pairs = []
    for i in range(1, len(subjects)):
        own = {name: found[name][i - 1] if name in found else None for name in ("bpb", "loss", "rare", "late")}
        sums = parts["bpb"][0]
        identical = np.array_equal(scores[0].nats, scores[i].nats) if same else np.array_equal(sums[:, 0], sums[:, i])
        verdict, sentence = verdict_of(LETTERS[i], own["loss"] or own["bpb"], "loss" if same else "bpb", identical)
        pairs.append(Pair(LETTERS[i], own, verdict, sentence))
    few = f"only {blocks.count} blocks: below {FEW_BLOCKS} the interval is unreliable; use a longer text"
    return Comparison(
        models=tuple(_figures(i, subjects[i], scores[i], means, same) for i in range(len(subjects))),
        pairs=tuple(pairs),
        same_tokenizer=same,
        sha256=scores[0].windows_sha256 if same else hashlib.sha256(scores[0].data).hexdigest(),
        hashed="the token windows" if same else "the bytes of the text",
        tokens=len(scores[0].ids),
        bytes=int(blocks.bytes.sum()),
        blocks=blocks.count,
        block_rule=blocks.rule,
        text_rule=text_rule,
        window_rule=_window_rule(subjects, scores, same),
        rare_rule=rare_rule,
        draws=draws,
        seed=seed,
        warnings=(few,) if blocks.count < FEW_BLOCKS else (),
        caveat=CAVEAT,
        scores=tuple(scores),
    )  # fmt: skip


def _figures(index: int, subject: Subject, score: Scores, means: Mapping[str, Floats], same: bool) -> Figures:
    whole = score.evaluation
    mean = {name: float(values[index]) for name, values in means.items()}
    return Figures(
        letter=LETTERS[index],
        name=subject.name,
        loss=whole.loss if same else None,
        ppl=whole.ppl if same else None,
        bpb=whole.bpb if same else mean.get("bpb"),
        rare=mean.get("rare"),
        late=mean.get("late"),
        tokens=len(score.ids),
        block_size=score.block_size,
        context_bytes=score.block_size * whole.bytes / whole.tokens,
    )


def _rare(score: Scores) -> tuple[npt.NDArray[np.bool_] | None, str | None]:
    """Which tokens are rare, and by what rule: the least frequent that make up about a tenth of the text compared."""
    counts = np.bincount(score.ids)
    ordered = np.sort(counts[counts > 0])
    share = np.cumsum(ordered) / len(score.ids)
    last = np.searchsorted(ordered, ordered, side="right") - 1  # tokens of one frequency are rare together or not
    within = ordered[share[last] <= RARE_SHARE]
    limit = int(within[-1]) if len(within) else int(ordered[0])
    rare = counts[score.ids] <= limit
    if rare.mean() > 0.5:
        return None, None
    times = "once" if limit == 1 else f"at most {fmt.number(limit)} times"
    return rare, f"rare tokens occur {times} in the text compared and are {fmt.percent(float(rare.mean()))} of it"


def _window_rule(subjects: Sequence[Subject], scores: Sequence[Scores], same: bool) -> str:
    if not same:
        sizes = ", ".join(
            f"{letter} {fmt.number(score.block_size)}" for letter, score in zip(LETTERS, scores, strict=False)
        )
        size = min(score.block_size * score.evaluation.bytes / score.evaluation.tokens for score in scores)
        return f"windows of about {fmt.number(size)} bytes for all, in tokens: {sizes}"
    size = scores[0].block_size
    longer = [
        f"{letter} could read {fmt.number(s.block_size)}"
        for letter, s in zip(LETTERS, subjects, strict=False)
        if s.block_size > min(subject.block_size for subject in subjects)
    ]
    return "; ".join([f"windows of {fmt.plural(size, 'token')}, the same for all", *longer])


# ---------------------------------------------------------------- colouring
def spans(result: Comparison, a: int, b: int) -> list[Span]:
    """Stretches of the text with what models number `a` and `b` of the comparison paid for them.

    They end where both have the end of a token, and at the end of a character; bytes that were not predicted by both
    are left out.
    """
    first, second = result.scores[a], result.scores[b]
    raw = np.frombuffer(result.data + b"a", np.uint8)
    ends = np.intersect1d(first.ends, second.ends)
    ends = ends[raw[ends] & 0xC0 != 0x80]  # a byte 10xxxxxx goes on with a character
    ends = np.union1d(ends, np.intersect1d(_gaps(first), _gaps(second)))
    sums = [_stretches(score, ends) for score in (first, second)]
    (begin, nats_a), (other, nats_b) = sums
    return [
        Span(int(begin[i]), int(ends[i]), float(nats_a[i]), float(nats_b[i]))
        for i in range(len(ends))
        if begin[i] == other[i] < ends[i]
    ]


def _gaps(score: Scores) -> npt.NDArray[np.int64]:
    """Ends of tokens that no predicted token follows."""
    return score.ends[np.append(score.begins[1:] != score.ends[:-1], True)]


def _stretches(score: Scores, ends: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Floats]:
    """First byte and nats of the tokens up to each of `ends`."""
    number = np.searchsorted(ends, score.ends)
    known = number < len(ends)
    begin = np.full(len(ends), np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(begin, number[known], score.begins[known])
    return begin, np.bincount(number[known], weights=score.nats[known], minlength=len(ends)).astype(np.float64)


__all__ = [
    "CAVEAT", "Comparison", "Difference", "Figures", "Pair", "Span", "Subject", "bootstrap", "compare", "spans",
]  # fmt: skip
