"""What a generation could have written instead: at each of its tokens, the likeliest ones and their probabilities.

They are the model's own, at temperature 1 and before any filter, from the context that the generation had there: the
prompt cut to the context, and a context begun anew on its last half whenever it was full, where it has an end at all
(see `dgsgpt.generation.context`). A context is read once, in parts, however many tokens were written from it; so all
of a long text costs about twice its length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation.context import anchored, check_vocabulary, context_lead, context_limit, prepare_prompt

if TYPE_CHECKING:
    from dgsgpt.model import GPT

TOP = 8
_PART_TOKENS, _PART_LOGITS = 256, 1 << 24  # tokens read at once, and at most so many numbers of their logits [T, V]


@dataclass(frozen=True)
class Choice:
    """One token of a generation: its -log p, and the likeliest tokens in its place as (id, probability)."""

    nats: float
    likeliest: tuple[tuple[int, float], ...]


def read_choices(
    model: GPT, tokenizer: Tokenizer, prompt: str, ids: Sequence[int], top: int = TOP
) -> Iterator[list[Choice]]:
    """The choices at all tokens `ids` of a generation that wrote them after `prompt`, in order, part by part.

    Whoever reads may stop after any part. The model is in evaluation mode while a part is computed.

    Raises:
        DgsgptError: the prompt cannot be used, a token is none of the tokenizer's, or the model gives NaN.
    """
    check_vocabulary(model, tokenizer)
    foreign = [token for token in ids if not 0 <= token < tokenizer.vocab_size]
    if foreign:
        raise DgsgptError(f"token id {foreign[0]} must be below the vocabulary's {tokenizer.vocab_size}")
    size = model.config.block_size
    lead = context_lead(tokenizer, size)
    start = prepare_prompt(tokenizer, prompt, size).ids
    for context, taken in _contexts(start, ids, context_limit(model), lead):
        yield from _of_context(model, tokenizer.vocab_size, context, taken, top)


def tell_choices(model: GPT, tokenizer: Tokenizer, prompt: str, ids: Sequence[int], top: int) -> list[dict[str, Any]]:
    """As `read_choices`, in plain values that JSON can hold; a token without text of its own is one that ends a text.

    Raises:
        DgsgptError: as `read_choices`.
    """
    found = chain.from_iterable(read_choices(model, tokenizer, prompt, ids, top))
    return [
        {
            "id": token,
            "text": _text_of(tokenizer, token),
            "nats": choice.nats,
            "alternatives": [{"id": t, "text": _text_of(tokenizer, t), "p": p} for t, p in choice.likeliest],
        }
        for token, choice in zip(ids, found, strict=True)
    ]


def _text_of(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")


def _contexts(
    start: list[int], ids: Sequence[int], limit: int | None, lead: list[int]
) -> Iterator[tuple[list[int], Sequence[int]]]:
    """What each context began with, and the tokens that were written before the next one."""
    context, at = start, 0
    while at < len(ids):
        taken = ids[at:] if limit is None else ids[at : at + limit - len(context) + 1]
        yield context, taken
        context, _ = anchored([*context, *taken[:-1]], [taken[-1]], limit, lead)
        at += len(taken)


def _of_context(
    model: GPT, vocab_size: int, context: list[int], taken: Sequence[int], top: int
) -> Iterator[list[Choice]]:
    read = torch.tensor([[*context, *taken[:-1]]], device=next(model.parameters()).device)
    # Row t of the logits is about the token after `read[t]`, so the rows from the last of `context` on matter.
    wanted = torch.tensor(taken, device=read.device)
    cache = model.make_cache(1, read.size(1) if context_limit(model) is not None else None)
    skipped = len(context) - 1
    for part in read.split(max(1, min(_PART_TOKENS, _PART_LOGITS // vocab_size)), dim=1):
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode():
                logits = model(part, cache=cache).logits
        finally:
            model.train(was_training)
        assert logits is not None, "without targets there are always logits"
        rows = logits[0, min(skipped, part.size(1)) :, :vocab_size]
        skipped -= part.size(1) - len(rows)
        if len(rows):
            yield _choices(rows, wanted[: len(rows)], top)
            wanted = wanted[len(rows) :]


@torch.inference_mode()
def _choices(logits: Tensor, taken: Tensor, top: int) -> list[Choice]:
    """Of logits [T, V] and the token taken at each [T]."""
    logprobs = torch.log_softmax(logits.float(), -1)
    if not bool(torch.isfinite(logits).all()):
        raise DgsgptError("the model gave logits that are not numbers; its weights are damaged or training diverged")
    nats = (-logprobs.gather(1, taken[:, None])[:, 0]).tolist()
    likeliest = torch.topk(logprobs, min(top, logprobs.size(1)))
    pairs = zip(likeliest.indices.tolist(), likeliest.values.exp().tolist(), strict=True)
    return [Choice(n, tuple(zip(ids, shares, strict=True))) for n, (ids, shares) in zip(nats, pairs, strict=True)]


__all__ = ["TOP", "Choice", "read_choices", "tell_choices"]
