"""Many texts at once, each the one that its prompt and seed give alone.

Rows whose contexts are equally long share a forward pass; so no row is padded, and positions, windows, rings of the
cache and n-grams are those of a single text. Groups of other lengths catch up: the one with the shortest contexts is
always written on, and where it becomes as long as another the two go on as one. The passes are as many as the longest
row needs, plus the difference in length of the prompts. A row that ends leaves, and the next prompt takes its place.

Row r (samples of one prompt are neighbours) has the seed `seed + r`, as if it were written alone with that one. Sums
within a pass may be rounded otherwise with more rows; a token changes by it only where two are equally likely to the
last digits.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation.context import Contexts, Prompt, check_vocabulary, context_lead, prepare_prompt
from dgsgpt.generation.engine import Dice, Stats, read_settings
from dgsgpt.generation.sampling import Sampling, check_whole
from dgsgpt.generation.text import TextBuffer

if TYPE_CHECKING:
    from dgsgpt.model import GPT

# Share of the new tokens that are written, counting those that a text which ended early did not need, and how many.
OnProgress = Callable[[float, int], None]

_SEEDS = 2**63


@dataclass(frozen=True)
class Result:
    """One text: which row, of which prompt and which of its samples, all counted from 0; `stats.ids` are its tokens.

    Seconds in `stats` are those from reading the prompt to the end, in which other rows were written, too.
    """

    row: int
    prompt: int
    sample: int
    text: str
    stats: Stats


def generate_batch(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    batch_size: int = 32,
    on_progress: OnProgress | None = None,
    **sampling: Any,
) -> list[Result]:
    """The continuations of `prompts`, `samples` of each, in their order; keywords as in `Sampling`.

    Raises:
        DgsgptError: as `write_batch`.
    """
    found = write_batch(
        model, tokenizer, prompts, samples=samples, batch_size=batch_size, on_progress=on_progress, **sampling
    )
    return sorted(found, key=lambda result: result.row)


def write_batch(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    samples: int = 1,
    batch_size: int = 32,
    on_progress: OnProgress | None = None,
    **sampling: Any,
) -> Iterator[Result]:
    """The same, each as soon as it is done; at most `batch_size` rows have a cache at any time.

    Everything is looked at before the first token. To stop, close the iterator, or raise in `on_progress`: the caches
    are then let go, and the model is in the mode it was in.

    Raises:
        DgsgptError: there is no prompt, one cannot be used (which is said), a setting is unknown or out of bounds, the
            tokenizer does not fit the model, or the model gives NaN.
    """
    rules = read_settings(sampling)
    check_whole("samples", samples, 1, 10_000)
    check_whole("batch_size", batch_size, 1, 4096)
    check_vocabulary(model, tokenizer)
    if not prompts:
        raise DgsgptError("there are no prompts to continue; give at least one")
    ready = _prepare(tokenizer, prompts, model.config.block_size)
    seed = rules.seed if rules.seed is not None else secrets.randbits(63)
    rows = [
        _Row(number * samples + sample, number, sample, prompt, rules, seed)
        for number, prompt in enumerate(ready)
        for sample in range(samples)
    ]
    return _Batch(model, tokenizer, rows, batch_size, rules).write(on_progress)


def _prepare(tokenizer: Tokenizer, prompts: Sequence[str], block_size: int) -> list[Prompt]:
    known: dict[str, Prompt] = {}
    for number, prompt in enumerate(prompts, 1):
        if prompt not in known:
            try:
                known[prompt] = prepare_prompt(tokenizer, prompt, block_size)
            except DgsgptError as e:
                raise type(e)(f"prompt {number} of {len(prompts)}: {e}" if len(prompts) > 1 else str(e)) from None
    return [known[prompt] for prompt in prompts]


class _Row:
    """One text on its way."""

    def __init__(self, row: int, prompt: int, sample: int, ready: Prompt, rules: Sampling, seed: int) -> None:
        self._place = (row, prompt, sample)
        self._rules = rules
        self.ids = ready.ids
        self.stats = Stats(prompt_tokens=len(ready.ids), cropped=ready.cropped, seed=(seed + row) % _SEEDS)
        self._text = TextBuffer(rules.stops)
        self._pieces: list[str] = []

    def begin(self, vocab_size: int) -> None:
        """Get ready to be written."""
        self._started = time.perf_counter()
        self._dice = Dice(self._rules, self.stats.seed, self.ids, vocab_size)

    def take(self, logits: Tensor, tokenizer: Tokenizer) -> bool:
        """Draw the next token from logits [V]; whether the text goes on."""
        token, nats = self._dice.draw(logits)
        stats = self.stats
        stats.tokens += 1
        stats.ids.append(token)
        stats.nats.append(nats)
        stats.seconds = time.perf_counter() - self._started
        if stats.first_token_s is None:
            stats.first_token_s = stats.seconds
        if token in tokenizer.ends_of_text:
            stats.finish_reason = "end_of_text"
        else:
            self._pieces.append(self._text.add(tokenizer.token_bytes(token)))
            if self._text.stopped:
                stats.finish_reason = "stop"
            elif stats.tokens == self._rules.max_new_tokens:
                stats.finish_reason = "length"
        return stats.finish_reason is None

    def result(self) -> Result:
        """What has become of it."""
        return Result(*self._place, "".join(self._pieces) + self._text.rest(), self.stats)


@dataclass
class _Group:
    """Rows with contexts of one length."""

    contexts: Contexts
    rows: list[_Row]


class _Batch:
    """Rows that wait, and groups of those that are being written."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, rows: list[_Row], batch_size: int, rules: Sampling) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._waiting = deque(rows)
        self._groups: list[_Group] = []
        self._batch_size = batch_size
        self._most = rules.max_new_tokens
        self._lead = context_lead(tokenizer, model.config.block_size)
        # No longer than any row will be: caches are allocated whole.
        self._room = max(len(row.ids) for row in rows) + self._most
        self._rows, self._tokens, self._saved = len(rows), 0, 0

    def write(self, on_progress: OnProgress | None) -> Iterator[Result]:
        """Results as they are done."""
        was_training = self._model.training
        self._model.eval()
        try:
            while self._waiting or self._groups:
                free = self._batch_size - sum(len(group.rows) for group in self._groups)
                done = self._admit(free) if free and self._waiting else self._advance()
                if on_progress is not None:
                    on_progress((self._tokens + self._saved) / (self._rows * self._most), self._tokens)
                for row in done:
                    yield row.result()
        finally:
            self._groups.clear()
            self._model.train(was_training)

    def _admit(self, count: int) -> list[_Row]:
        """Read the prompts of up to `count` rows that wait; the rows that ended with their first token."""
        rows = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        for row in rows:
            row.begin(self._tokenizer.vocab_size)
        done: list[_Row] = []
        for length in sorted({len(row.ids) for row in rows}):
            some = [row for row in rows if len(row.ids) == length]
            prompts = {tuple(row.ids): None for row in some}  # those of several samples are read once
            places = {ids: place for place, ids in enumerate(prompts)}
            order = [places[tuple(row.ids)] for row in some]
            contexts = Contexts(self._model, self._lead, len(prompts), self._room)
            logits = contexts.read([list(ids) for ids in prompts])
            contexts.select(order)
            done += self._take(_Group(contexts, some), logits[order])
        return done

    def _advance(self) -> list[_Row]:
        """Write one token of each row in the group with the shortest contexts; the rows that ended with it."""
        group = min(self._groups, key=lambda group: group.contexts.length)
        self._groups.remove(group)
        return self._take(group, group.contexts.read([[row.stats.ids[-1]] for row in group.rows]))

    def _take(self, group: _Group, logits: Tensor) -> list[_Row]:
        """Draw a token for each row of a group, from logits [B, V], and keep it with its like; the rows that ended."""
        logits = logits.cpu()
        goes_on = [row.take(one, self._tokenizer) for row, one in zip(group.rows, logits, strict=True)]
        self._tokens += len(goes_on)
        done = [row for row, more in zip(group.rows, goes_on, strict=True) if not more]
        self._saved += sum(self._most - row.stats.tokens for row in done)
        kept = [place for place, more in enumerate(goes_on) if more]
        if kept:
            group.contexts.select(kept)
            group.rows = [group.rows[place] for place in kept]
            self._keep(group)
        return done

    def _keep(self, group: _Group) -> None:
        for other in self._groups:
            if other.contexts.length == group.contexts.length:
                other.contexts.join(group.contexts)
                other.rows += group.rows
                return
        self._groups.append(group)


__all__ = ["OnProgress", "Result", "generate_batch", "write_batch"]
