"""What a model has read: prompts cut to the context, and caches that begin anew when the context is full.

A prompt longer than the context keeps its last `block_size - 1` tokens. When the context fills up while writing, a
model whose layers all have a window, and whose positions have no end, just goes on: rotary positions grow, each layer
keeps its window, and every token is predicted exactly as if the whole text were read, at the same cost however long
it is. Any other model is re-anchored: the last half of `block_size` tokens is read anew from position 0, and writing
goes on. So every token is predicted from at least half a context, at the price of one half-context pass every half
context. A model that expects a token before every text (`begin_of_text`) reads it again each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.model.cache import is_endless
from dgsgpt.model.native import NativeStep, native_step

if TYPE_CHECKING:
    from dgsgpt.model import GPT

# Reading long prompts in parts of so many tokens, of all rows together, keeps their logits [B, T, V] small.
_PREFILL_TOKENS = 512


@dataclass(frozen=True)
class Prompt:
    """Token ids that fit the context, and how many were cropped from the start."""

    ids: list[int]
    cropped: int


def prepare_prompt(tokenizer: Tokenizer, prompt: str, block_size: int) -> Prompt:
    """The prompt's last `block_size - 1` tokens (at least one) and how many are cropped.

    `begin_of_text` comes first if the tokenizer has it, whatever is cropped. Without it an empty prompt starts from
    `<|endoftext|>`.

    Raises:
        DgsgptError: the prompt is empty and the tokenizer has neither.
        DataError: it has characters the tokenizer does not know; they are listed.
    """
    lead = context_lead(tokenizer, block_size)
    ids = tokenizer.encode(prompt)
    if not ids and not lead:
        if tokenizer.end_of_text is None:
            raise DgsgptError(
                f"the prompt is empty, and the {tokenizer.kind} tokenizer cannot start from nothing; give a character"
            )
        ids = [tokenizer.end_of_text]
    kept = ids[-max(1, block_size - 1 - len(lead)) :]
    return Prompt([*lead, *kept], len(ids) - len(kept))


def check_vocabulary(model: GPT, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer with ids that the model has no rows for.

    Raises:
        DgsgptError: it has.
    """
    rows = model.config.vocab_size or 0
    if tokenizer.vocab_size > rows:
        raise DgsgptError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {rows}; "
            "use the tokenizer the model was trained with"
        )


def context_lead(tokenizer: Tokenizer, block_size: int) -> list[int]:
    """What every context begins with; nothing where the context has no room for it."""
    begin = tokenizer.begin_of_text
    return [begin] if begin is not None and block_size > 2 else []


def context_limit(model: GPT) -> int | None:
    """Tokens after which a context of `model` must begin anew; None where it can go on for ever."""
    return None if is_endless(model.config) else model.config.block_size


def anchored(read: list[int], new: list[int], limit: int | None, lead: list[int]) -> tuple[list[int], bool]:
    """Tokens to read next when `new` follow those `read`, and whether the context begins anew with them."""
    if limit is None or len(read) + len(new) <= limit:
        return new, False
    return [*lead, *[*read, *new][-max(1, limit // 2) :]], True


class Contexts:
    """Contexts of equal length, read together in one cache; those that cannot go on for ever are re-anchored.

    `room` is the most tokens that a row will have, if that is known. The rows B may change between reads: `select`
    keeps some or repeats them, `join` adds others that are as long.
    """

    def __init__(self, model: GPT, lead: list[int], rows: int, room: int | None = None) -> None:
        self._model = model
        self._limit = context_limit(model)
        self._lead = lead
        self._device = next(model.parameters()).device
        self._length = 0
        self._token = torch.zeros(1, 1, dtype=torch.long, device=self._device)
        self._ids: list[list[int]] = [[] for _ in range(rows)]  # what a new beginning needs: none of an endless text
        self._cache = model.make_cache(rows, min((most for most in (self._limit, room) if most), default=None))
        self._native: NativeStep | None = None
        self._asked = False  # whether compiled code can read single tokens, which the first of them tells

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def length(self) -> int:
        """Tokens that each row has read since its context began."""
        return self._length

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values."""
        return self._cache.n_bytes

    def read(self, new: Sequence[list[int]]) -> Tensor:
        """Logits [B, V] of the tokens after `new`, B lists of one length that fit the context."""
        if self._limit is not None:
            new = self._anchored(new)
        self._length += len(new[0])
        if len(new) == len(new[0]) == 1 and (step := self._step()):
            return self._alone(step, new[0][0])
        tokens = self._tensor(new)
        for part in tokens.split(max(1, _PREFILL_TOKENS // len(new)), dim=1):
            logits = self._forward(part)
        return logits

    def _anchored(self, new: Sequence[list[int]]) -> list[list[int]]:
        """What to read of `new`, or in its place where the contexts begin anew, which is all of them or none."""
        parts = [anchored(ids, some, self._limit, self._lead) for ids, some in zip(self._ids, new, strict=True)]
        if parts[0][1]:
            self._ids = [[] for _ in parts]
            self._length = 0
            self._cache.clear()
        for ids, (some, _) in zip(self._ids, parts, strict=True):
            ids += some
        return [some for some, _ in parts]

    def _tensor(self, new: Sequence[list[int]]) -> Tensor:
        """`new` [B, T]; single tokens of one text always in the same place."""
        if len(new) > 1 or len(new[0]) > 1:
            return torch.tensor(new, device=self._device)
        return self._token.fill_(new[0][0])

    # Only the forward pass is in inference mode: around a `yield` the mode would leak into the caller.
    @torch.inference_mode()
    def _forward(self, tokens: Tensor) -> Tensor:
        logits = self._model(tokens, cache=self._cache).logits
        assert logits is not None, "without targets there are always logits"
        return logits[:, -1]

    @torch.inference_mode()
    def _alone(self, step: NativeStep, token: int) -> Tensor:
        return step(token)[None]

    def _step(self) -> NativeStep | None:
        """What reads a single token by compiled code, if that can be."""
        if not self._asked or (self._native is not None and not self._native.is_current()):
            self._native, self._asked = native_step(self._model, self._cache), True
        return self._native

    @torch.inference_mode()
    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order and as often as named."""
        if list(rows) != list(range(len(self._ids))):
            self._asked = False
            self._ids = [list(self._ids[row]) for row in rows]
            self._cache.select(torch.tensor(rows, dtype=torch.long, device=self._device))

    @torch.inference_mode()
    def join(self, other: Contexts) -> None:
        """Take over the rows of `other`, which is as long, behind one's own; `other` is of no use any more."""
        self._asked = False
        self._ids += other._ids
        self._cache.join(other._cache)


class Context:
    """What the model has read of one text."""

    def __init__(self, model: GPT, lead: list[int]) -> None:
        self._contexts = Contexts(model, lead, 1)

    def read(self, new: list[int]) -> Tensor:
        """Logits [V] of the token after `new`, which fit the context."""
        return self._contexts.read([new])[0]

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, which are allocated at once."""
        return self._contexts.cache_bytes


__all__ = [
    "Context",
    "Contexts",
    "Prompt",
    "anchored",
    "check_vocabulary",
    "context_lead",
    "context_limit",
    "prepare_prompt",
]
