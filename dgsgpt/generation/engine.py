"""Text from a model, token by token, with a cache of keys and values.

How far back it sees is told in `dgsgpt.generation.context`. Pieces hold whole characters only. A token that ends a text
(`<|endoftext|>`, where the tokenizer has it) is not shown.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation.context import (
    Context,
    Prompt,
    anchored,
    check_vocabulary,
    context_lead,
    context_limit,
    prepare_prompt,
)
from dgsgpt.generation.resume import context_after
from dgsgpt.generation.sampling import Sampling, gumbel_noise, sample_token
from dgsgpt.generation.text import TextBuffer

if TYPE_CHECKING:
    from dgsgpt.model import GPT

FinishReason = Literal["length", "stop", "end_of_text", "closed"]


@dataclass
class Stats:
    """What a generation did; complete once the stream has ended.

    `ids` are the new tokens, one that ended the text included, and `nats` what each cost: the model's own -log p at
    temperature 1, before any filter.
    """

    prompt_tokens: int
    cropped: int
    seed: int
    tokens: int = 0
    seconds: float = 0.0
    first_token_s: float | None = None
    finish_reason: FinishReason | None = None
    ids: list[int] = field(default_factory=list)
    nats: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second, reading the prompt included, the time of whoever reads the pieces excluded."""
        return self.tokens / self.seconds if self.seconds else 0.0


class TextStream(Iterator[str]):
    """Pieces of new text; `.stats` tells how it went. `close()`, or leaving a `with` block, stops at once."""

    def __init__(self, pieces: Generator[str], stats: Stats) -> None:
        self._pieces = pieces
        self.stats = stats

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop generating and free the cache."""
        self._pieces.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_settings(settings: dict[str, Any]) -> Sampling:
    """`Sampling` of settings by name.

    Raises:
        DgsgptError: one is unknown or out of bounds.
    """
    try:
        return Sampling(**settings)
    except TypeError:
        known = ", ".join(Sampling.__dataclass_fields__)
        raise DgsgptError(f"unknown among the sampling settings {', '.join(settings)}; known are {known}") from None


def generate(model: GPT, tokenizer: Tokenizer, prompt: str, **sampling: Any) -> str:
    """The continuation of `prompt`, without the prompt; keywords as in `Sampling`.

    Raises:
        DgsgptError: as `stream`.
    """
    return "".join(stream(model, tokenizer, prompt, **sampling))


def stream(
    model: GPT, tokenizer: Tokenizer, prompt: str, *, written: Sequence[int] = (), **sampling: Any
) -> TextStream:
    """The continuation of `prompt` in pieces, as it is written; keywords as in `Sampling`.

    `written` are new tokens that are there already: the first piece is their text, and the stream goes on after them
    as one that wrote them itself with this seed. `max_new_tokens` and `.stats` count what follows.

    The same model, prompt and seed give the same text. Ids that the tokenizer does not have are never drawn, though
    the model may have rows for them. The model is in evaluation mode while the stream is open.

    Raises:
        DgsgptError: a setting is out of bounds or unknown, the prompt cannot be used, or the model gives NaN.
    """
    rules = read_settings(sampling)
    check_vocabulary(model, tokenizer)
    ready = prepare_prompt(tokenizer, prompt, model.config.block_size)
    seed = rules.seed if rules.seed is not None else secrets.randbits(63)
    stats = Stats(prompt_tokens=len(ready.ids), cropped=ready.cropped, seed=seed)
    return TextStream(_pieces(model, tokenizer, ready.ids, list(written), rules, stats), stats)


def _pieces(
    model: GPT, tokenizer: Tokenizer, ids: list[int], written: list[int], rules: Sampling, stats: Stats
) -> Generator[str]:
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    text = TextBuffer(rules.stops)
    try:
        if before := text.resume(b"".join(map(tokenizer.token_bytes, written))):
            yield before
            started = time.perf_counter()
        for token, nats in _tokens(model, tokenizer, ids, written, rules, stats.seed):
            stats.tokens += 1
            stats.ids.append(token)
            stats.nats.append(nats)
            stats.seconds = time.perf_counter() - started
            if stats.first_token_s is None:
                stats.first_token_s = stats.seconds
            if token in tokenizer.ends_of_text:
                stats.finish_reason = "end_of_text"
                break
            if piece := text.add(tokenizer.token_bytes(token)):
                paused = time.perf_counter()
                yield piece
                started += time.perf_counter() - paused  # a slow reader is no slow model
            if text.stopped:
                stats.finish_reason = "stop"
                return
        stats.finish_reason = stats.finish_reason or "length"
        if piece := text.rest():
            yield piece
    finally:
        stats.finish_reason = stats.finish_reason or "closed"
        model.train(was_training)


def _tokens(
    model: GPT, tokenizer: Tokenizer, ids: list[int], written: list[int], rules: Sampling, seed: int
) -> Iterator[tuple[int, float]]:
    """`max_new_tokens` new token ids after those `written`, each with its -log p."""
    lead = context_lead(tokenizer, model.config.block_size)
    dice = Dice(rules, seed, [*ids, *written], tokenizer.vocab_size)
    dice.skip(len(written))
    context = Context(model, lead)
    logits = context.read(context_after(ids, written, context_limit(model), lead))
    for left in range(rules.max_new_tokens - 1, -1, -1):
        token, nats = dice.draw(logits)
        yield token, nats
        if left:
            logits = context.read([token])


class Dice:
    """The draws of one text: its generator, and which tokens it has had already."""

    def __init__(self, rules: Sampling, seed: int, prompt: list[int], vocab_size: int) -> None:
        self._rules = rules
        self._generator = torch.Generator().manual_seed(seed)
        self._seen = torch.zeros(vocab_size, dtype=torch.bool)
        self._seen[prompt] = True
        self._room = torch.empty(vocab_size, dtype=torch.float64)

    def skip(self, draws: int) -> None:
        """Let go of the noise of so many draws, as if they had been made."""
        if self._rules.temperature > 0:
            for _ in range(draws):
                gumbel_noise(len(self._seen), self._generator, self._room)

    def draw(self, logits: Tensor) -> tuple[int, float]:
        """The next token of a text, from logits [V] with a row for each of the model's tokens, and its -log p."""
        own = logits[: len(self._seen)].to("cpu", torch.float64)
        token = sample_token(own, self._rules, self._generator, self._seen, self._room)
        if self._rules.repetition_penalty != 1:  # which alone asks
            self._seen[token] = True
        return token, float(torch.logsumexp(own, 0)) - float(own[token])


__all__ = [
    "Context",
    "Dice",
    "Prompt",
    "Stats",
    "TextStream",
    "anchored",
    "context_lead",
    "generate",
    "prepare_prompt",
    "read_settings",
    "stream",
]
