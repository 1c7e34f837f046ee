"""The texts of an order, in pieces: the one place where this package asks a model to write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from dgsgpt.api.logprobs import Scored, Shadow, TokenLog, judge_prompt
from dgsgpt.api.problems import ApiError
from dgsgpt.api.schema import Order, Prompt
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation import Stats, TextStream, prepare_prompt, stream

if TYPE_CHECKING:
    from dgsgpt.checkpoint import Checkpoint
    from dgsgpt.model import GPT

_SEEDS = 2**63
# Figures take about a thousand times the room of the text they tell of.
_MAX_FIGURES = 100_000


@dataclass(frozen=True)
class Ready:
    """The order can be carried out; everything that may be wrong with it has been looked at."""


@dataclass(frozen=True)
class Piece:
    """More text of choice `index`, and the figures of its tokens if they were asked for."""

    index: int
    text: str
    tokens: list[Scored] = field(default_factory=list)


@dataclass(frozen=True)
class Finished:
    """Choice `index` is whole: why it ended, its seed, and how many tokens of its prompt did not fit the context."""

    index: int
    reason: str
    seed: int | None
    cropped: int


Event = Ready | Piece | Finished


@dataclass
class Tally:
    """What an order has cost so far."""

    prompt_tokens: int = 0
    stats: list[Stats] = field(default_factory=list)

    @property
    def completion_tokens(self) -> int:
        """New tokens of all choices."""
        return sum(stats.tokens for stats in self.stats)

    @property
    def tokens_per_s(self) -> float:
        """New tokens per second of writing."""
        seconds = sum(stats.seconds for stats in self.stats)
        return self.completion_tokens / seconds if seconds else 0.0


class _GivenIds:
    """A tokenizer that has encoded the prompt already; everything else is the tokenizer's own."""

    def __init__(self, tokenizer: Tokenizer, ids: list[int]) -> None:
        self._tokenizer, self._ids = tokenizer, ids

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str) -> list[int]:
        return list(self._ids)


class _Start:
    """A prompt, encoded once for all its choices.

    Raises:
        ApiError: 400, the prompt cannot be used.
    """

    def __init__(self, checkpoint: Checkpoint, prompt: Prompt, param: str) -> None:
        tokenizer = checkpoint.tokenizer
        size = checkpoint.model.config.block_size
        try:
            ids = tokenizer.encode(prompt) if isinstance(prompt, str) else _without_lead(tokenizer, prompt)
            self.tokenizer = cast(Tokenizer, _GivenIds(tokenizer, ids))
            self.text = prompt if isinstance(prompt, str) else tokenizer.decode(ids)
            ready = prepare_prompt(self.tokenizer, "", size)
        except DgsgptError as e:
            raise ApiError(400, str(e), param=param) from None
        self.ids, self.read, self.cropped = ids, ready.ids, ready.cropped


def _without_lead(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Ids of a client may begin with the token that every context is given anyway."""
    return ids[1:] if ids and ids[0] == tokenizer.begin_of_text else ids


def write(checkpoint: Checkpoint, order: Order, tally: Tally) -> Iterator[Event]:
    """First `Ready`, then the pieces of every choice, one choice after the other.

    Raises:
        ApiError: 400 before `Ready`, when a prompt cannot be used.
        DgsgptError: the model gives NaN.
    """
    starts = [_Start(checkpoint, prompt, "messages" if order.reply else "prompt") for prompt in order.prompts]
    if order.logprobs is not None:
        _check_figures(starts, order)
    tally.prompt_tokens = sum(len(start.read) + start.cropped for start in starts)
    yield Ready()
    for index in range(len(starts) * order.n):
        start, choice = starts[index // order.n], index % order.n
        yield from _write_one(checkpoint.model, start, order, index, choice, tally)


def _check_figures(starts: list[_Start], order: Order) -> None:
    cropped = next((start for start in starts if start.cropped), None)
    if order.echo and cropped is not None:
        kept = len(cropped.ids) - cropped.cropped
        message = f"the prompt has {len(cropped.ids):,} tokens; at most {kept:,} can be judged with echo; shorten it"
        raise ApiError(400, message, param="prompt")
    echoed = sum(len(start.ids) for start in starts) if order.echo else 0
    figures = order.n * (echoed + order.max_tokens * len(starts))
    if figures > _MAX_FIGURES:
        message = f"logprobs of up to {figures:,} tokens are over the limit of {_MAX_FIGURES:,}; ask for fewer texts"
        raise ApiError(400, message, param="logprobs")


def _open(model: GPT, start: _Start, order: Order, choice: int) -> TextStream:
    return stream(
        model,
        start.tokenizer,
        "",
        max_new_tokens=order.max_tokens,
        temperature=order.temperature,
        top_k=order.top_k,
        top_p=order.top_p,
        stop=order.stop,
        seed=None if order.seed is None else (order.seed + choice) % _SEEDS,
    )


def _write_one(model: GPT, start: _Start, order: Order, index: int, choice: int, tally: Tally) -> Iterator[Event]:
    log = TokenLog(start.tokenizer) if order.logprobs is not None else None
    given = 0
    if order.echo:
        if log is not None:
            _log_prompt(log, model, start, order.logprobs or 0)
        given = len(start.text)
        yield Piece(index, start.text, log.give(given) if log else [])
    if order.max_tokens == 0:
        yield Finished(index, "length", order.seed, start.cropped)
        return
    with _open(model, start, order, choice) as pieces:
        tally.stats.append(pieces.stats)
        figures = _Figures(log, model, start, order.logprobs or 0, pieces.stats) if log is not None else None
        for text in pieces:
            if order.reply and not given:
                text = text.removeprefix(" ")
            given += len(text)
            tokens = figures.give(given) if figures else []
            if text:
                yield Piece(index, text, tokens)
    reason = "length" if pieces.stats.finish_reason == "length" else "stop"
    yield Finished(index, reason, pieces.stats.seed, pieces.stats.cropped)


def _log_prompt(log: TokenLog, model: GPT, start: _Start, count: int) -> None:
    """Figures of the prompt's tokens; a first one that nothing comes before has none."""
    judged = judge_prompt(model, start.tokenizer, start.read, count)
    unjudged = len(start.ids) - len(judged)
    for token in start.ids[:unjudged]:
        log.add(token, None, [])
    for token, (logprob, likeliest) in zip(start.ids[unjudged:], judged, strict=True):
        log.add(token, logprob, likeliest)


class _Figures:
    """The figures of the new tokens, as the text that they begin in is given out."""

    def __init__(self, log: TokenLog, model: GPT, start: _Start, count: int, stats: Stats) -> None:
        self._log, self._stats, self._count = log, stats, count
        self._shadow = Shadow(model, start.tokenizer, start.read, count)
        self._seen = 0

    def give(self, characters: int) -> list[Scored]:
        """Figures of the tokens that begin within the first `characters` and have not been given."""
        for token, nats in zip(self._stats.ids[self._seen :], self._stats.nats[self._seen :], strict=True):
            likeliest = self._shadow.likeliest(token) if self._count else []
            self._log.add(token, -nats, likeliest)
        self._seen = len(self._stats.ids)
        return self._log.give(characters)


__all__ = ["Event", "Finished", "Piece", "Ready", "Tally", "write"]
