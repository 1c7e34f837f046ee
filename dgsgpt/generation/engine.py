"""Text from a model, token by token, with a cache of keys and values.

Context. A prompt longer than the context keeps its last `block_size - 1` tokens. When the context fills up while
writing, it is re-anchored: the last half of `block_size` tokens is read anew from position 0, and writing goes on. So
every token is predicted from at least half a context, at the price of one half-context pass every half context. A
model that expects a token before every text (`begin_of_text`) reads it again each time.

Text. Pieces hold whole characters only: bytes of a character that is still incomplete wait for the rest, and are
dropped if the text ends first. A token that ends a text (`<|endoftext|>`, where the tokenizer has it) is not shown.
"""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation.sampling import Sampling, sample_token

if TYPE_CHECKING:
    from dgsgpt.model import GPT

# Reading a long prompt in parts keeps its logits [1, T, V] small.
_PREFILL_TOKENS = 512

FinishReason = Literal["length", "stop", "end_of_text", "closed"]


@dataclass(frozen=True)
class Prompt:
    """Token ids that fit the context, and how many were cropped from the start."""

    ids: list[int]
    cropped: int


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


def context_lead(tokenizer: Tokenizer, block_size: int) -> list[int]:
    """What every context begins with; nothing where the context has no room for it."""
    begin = tokenizer.begin_of_text
    return [begin] if begin is not None and block_size > 2 else []


def anchored(read: list[int], new: list[int], block_size: int, lead: list[int]) -> tuple[list[int], bool]:
    """Tokens to read next when `new` follow those `read`, and whether the context begins anew with them."""
    if len(read) + len(new) <= block_size:
        return new, False
    return [*lead, *[*read, *new][-max(1, block_size // 2) :]], True


def generate(model: GPT, tokenizer: Tokenizer, prompt: str, **sampling: Any) -> str:
    """The continuation of `prompt`, without the prompt; keywords as in `Sampling`.

    Raises:
        DgsgptError: as `stream`.
    """
    return "".join(stream(model, tokenizer, prompt, **sampling))


def stream(model: GPT, tokenizer: Tokenizer, prompt: str, **sampling: Any) -> TextStream:
    """The continuation of `prompt` in pieces, as it is written; keywords as in `Sampling`.

    The same model, prompt and seed give the same text. Ids that the tokenizer does not have are never drawn, though
    the model may have rows for them. The model is in evaluation mode while the stream is open.

    Raises:
        DgsgptError: a setting is out of bounds or unknown, the prompt cannot be used, or the model gives NaN.
    """
    try:
        rules = Sampling(**sampling)
    except TypeError:
        known = ", ".join(Sampling.__dataclass_fields__)
        raise DgsgptError(f"unknown among the sampling settings {', '.join(sampling)}; known are {known}") from None
    rows = model.config.vocab_size or 0
    if tokenizer.vocab_size > rows:
        raise DgsgptError(
            f"the tokenizer has {tokenizer.vocab_size} tokens but the model only {rows}; "
            "use the tokenizer the model was trained with"
        )
    ready = prepare_prompt(tokenizer, prompt, model.config.block_size)
    seed = rules.seed if rules.seed is not None else secrets.randbits(63)
    stats = Stats(prompt_tokens=len(ready.ids), cropped=ready.cropped, seed=seed)
    return TextStream(_pieces(model, tokenizer, ready.ids, rules, stats), stats)


def _pieces(model: GPT, tokenizer: Tokenizer, ids: list[int], rules: Sampling, stats: Stats) -> Generator[str]:
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    text = _TextBuffer(rules.stops)
    try:
        for token, nats in _tokens(model, tokenizer, ids, rules, stats.seed):
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
    model: GPT, tokenizer: Tokenizer, ids: list[int], rules: Sampling, seed: int
) -> Iterator[tuple[int, float]]:
    """`max_new_tokens` new token ids, each with its -log p."""
    generator = torch.Generator().manual_seed(seed)
    context = Context(model, context_lead(tokenizer, model.config.block_size))
    logits = context.read(ids)[: tokenizer.vocab_size].cpu()
    for left in range(rules.max_new_tokens - 1, -1, -1):
        token = sample_token(logits, rules, generator)
        yield token, float(torch.logsumexp(logits.double(), 0) - logits[token].double())
        if left:
            logits = context.read([token])[: tokenizer.vocab_size].cpu()


class Context:
    """What the model has read, in a cache of `block_size` tokens that is re-anchored when full."""

    def __init__(self, model: GPT, lead: list[int]) -> None:
        self._model = model
        self._size = model.config.block_size
        self._lead = lead
        self._device = next(model.parameters()).device
        self._ids: list[int] = []
        self._cache = model.make_cache(1, self._size)

    def read(self, new: list[int]) -> Tensor:
        """Logits [V] of the token after `new`, which fit the context."""
        new, anew = anchored(self._ids, new, self._size, self._lead)
        if anew:
            self._ids = []
            self._cache = self._model.make_cache(1, self._size)
        self._ids += new
        for first in range(0, len(new), _PREFILL_TOKENS):
            logits = self._forward(new[first : first + _PREFILL_TOKENS])
        return logits

    # Only the forward pass is in inference mode: around a `yield` the mode would leak into the caller.
    @torch.inference_mode()
    def _forward(self, new: list[int]) -> Tensor:
        logits = self._model(torch.tensor([new], device=self._device), cache=self._cache).logits
        assert logits is not None, "without targets there are always logits"
        return logits[0, -1]


class _TextBuffer:
    """Bytes in, whole characters out; holds back what may be the start of a stop text."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self._held = ""
        self.stopped = False

    def add(self, data: bytes) -> str:
        """Text that is now certain to belong to the output."""
        self._held += self._decoder.decode(data)
        ends = [place for place in map(self._held.find, self._stops) if place >= 0]
        if ends:
            self.stopped = True
            self._held = self._held[: min(ends)]
            return self.rest()
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        ready, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return ready

    def rest(self) -> str:
        """What was held back."""
        rest, self._held = self._held, ""
        return rest

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


__all__ = [
    "Context",
    "Prompt",
    "Stats",
    "TextStream",
    "anchored",
    "context_lead",
    "generate",
    "prepare_prompt",
    "stream",
]
