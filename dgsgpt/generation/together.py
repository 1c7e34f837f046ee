"""Two models that write from one prompt with one seed: where their texts part, and how sure each was there.

With one seed the noise of the draw is shared (see `dgsgpt.generation.sampling`), so a parting is the models' doing.
Token ids are compared, which means something only where both have the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation.context import Context, context_lead, context_limit, prepare_prompt
from dgsgpt.generation.resume import context_after

if TYPE_CHECKING:
    from dgsgpt.model import GPT


def divergence(a_ids: Sequence[int], b_ids: Sequence[int]) -> int | None:
    """Index of the first token that differs, or that only one of both has; None when they are equal."""
    for index, (a, b) in enumerate(zip(a_ids, b_ids, strict=False)):
        if a != b:
            return index
    return None if len(a_ids) == len(b_ids) else min(len(a_ids), len(b_ids))


def choices_at(
    model: GPT, tokenizer: Tokenizer, prompt: str, ids: Sequence[int], index: int, candidates: Sequence[int]
) -> list[float]:
    """Probabilities of `candidates` as token number `index` of a generation that wrote `ids` after `prompt`.

    They are the model's own, at temperature 1 and before any filter, from the context that the generation had there.

    Raises:
        DgsgptError: `index` is beyond the next token of `ids`, a candidate is none of the tokenizer's, the prompt
            cannot be used, or the model gives NaN.
    """
    if not 0 <= index <= len(ids):
        raise DgsgptError(f"token {index} cannot be asked for: the generation has {len(ids)}; give 0 to {len(ids)}")
    foreign = [token for token in candidates if not 0 <= token < tokenizer.vocab_size]
    if foreign:
        raise DgsgptError(f"token id {foreign[0]} must be below the vocabulary's {tokenizer.vocab_size}")
    size = model.config.block_size
    lead = context_lead(tokenizer, size)
    context = context_after(prepare_prompt(tokenizer, prompt, size).ids, ids[:index], context_limit(model), lead)
    was_training = model.training
    model.eval()
    try:
        logits = Context(model, lead).read(context)[: tokenizer.vocab_size]
    finally:
        model.train(was_training)
    probabilities = torch.softmax(logits.cpu().double(), 0)
    if not bool(torch.isfinite(probabilities).all()):
        raise DgsgptError("the model gave logits that are not numbers; its weights are damaged or training diverged")
    return [float(probabilities[token]) for token in candidates]


__all__ = ["choices_at", "divergence"]
