"""Beam search: the likeliest texts as a whole, not token by token.

At every step all beams are continued by all tokens, and the `n_beams` likeliest continuations go on (Graves 2012,
section 2.1; Sutskever et al. 2014, section 3.2). A text that ends is set aside with its score, log-probability divided
by (new tokens) ^ length_penalty; the `n_beams` best of these are kept. The rules are those of transformers: of the
continuations only the `n_beams` likeliest may end there, the token that ends a text counts in its length, and texts as
long as allowed are scored like ended ones. Unlike there, no beam is ever a copy of another: where there are fewer
continuations than beams, fewer beams go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation.context import Contexts, check_vocabulary, context_lead, prepare_prompt
from dgsgpt.generation.sampling import check_number, check_whole
from dgsgpt.generation.text import whole_text

if TYPE_CHECKING:
    from dgsgpt.model import GPT

EarlyStopping = bool | Literal["never"]
State = Literal["alive", "pruned", "finished"]


@dataclass(frozen=True)
class BeamSettings:
    """The rules of one search.

    length_penalty above 0 favours long texts, below 0 short ones; 0 is plain log-probability. early_stopping True ends
    the search as soon as `n_beams` texts have ended; False when the best beam, were it to end at its length, would be
    no better than the worst of these; "never" when no beam can become better at any length (exact for penalties that
    favour long texts). `n_best` texts are given, None is all beams.

    Raises:
        DgsgptError: a value is out of bounds.
    """

    n_beams: int = 4
    max_new_tokens: int = 64
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    n_best: int | None = None

    def __post_init__(self) -> None:
        check_whole("n_beams", self.n_beams, 1, 1000)
        check_whole("max_new_tokens", self.max_new_tokens, 1, 100_000)
        check_number("length_penalty", self.length_penalty, -10, 10)
        if not isinstance(self.early_stopping, bool) and self.early_stopping != "never":
            raise DgsgptError(f'early_stopping={self.early_stopping!r} must be True, False or "never"')
        if self.n_best is not None:
            check_whole("n_best", self.n_best, 1, self.n_beams)


@dataclass(frozen=True)
class Node:
    """One continuation that was looked at: a token after those of its parent (None: after the prompt).

    "alive" ones went on, "finished" ones ended or were cut off there and were among the best when they did, "pruned"
    ones were given up. `logprob` is that of all new tokens up to this one, in nats.
    """

    token: int
    parent: int | None
    depth: int
    logprob: float
    state: State


@dataclass(frozen=True)
class Beam:
    """One text; `ids` are its new tokens, one that ended it included, `node` its last one in the tree.

    `finished` is False where it was cut off by the limit of new tokens.
    """

    text: str
    ids: list[int]
    score: float
    logprob: float
    finished: bool
    node: int


@dataclass(frozen=True)
class BeamResult:
    """The best texts, best first, and the tree of the continuations that were looked at.

    The tree holds at each step the `n_beams` likeliest and as many more for each token that may end a text, parents
    before children.
    """

    beams: list[Beam]
    tree: list[Node]
    prompt_tokens: int
    cropped: int
    tokens: int  # steps, each a forward pass for all beams
    seconds: float
    first_token_s: float


@dataclass(frozen=True)
class _Ended:
    node: int
    score: float
    by_token: bool


@dataclass
class _Search:
    """What a search has found so far."""

    settings: BeamSettings
    ends: tuple[int, ...]
    tree: list[Node] = field(default_factory=list)
    beams: list[int] = field(default_factory=list)  # nodes that go on
    ended: list[_Ended] = field(default_factory=list)  # best first
    depth: int = 0

    def step(self, logprobs: Tensor) -> list[int]:
        """Continue the beams by log-probabilities [B, V] of their next tokens; from which rows the new beams come."""
        n, last = self.settings.n_beams, self.depth + 1 == self.settings.max_new_tokens
        before = [self.tree[node].logprob for node in self.beams] or [0.0]
        total = (logprobs + torch.tensor(before, dtype=torch.float64)[:, None]).flatten()
        best = total.topk(min(len(total), n * max(2, 1 + len(self.ends))))
        self.depth += 1
        parents, self.beams = self.beams, []
        rows: list[int] = []
        closed: list[_Ended] = []
        for rank, (place, value) in enumerate(zip(best.indices.tolist(), best.values.tolist(), strict=True)):
            if value == -math.inf:
                break
            row, token = divmod(place, logprobs.size(1))
            node = Node(token, parents[row] if parents else None, self.depth, value, "pruned")
            if token in self.ends or last:
                if rank < n:
                    closed.append(_Ended(len(self.tree), self._score(value, self.depth), token in self.ends))
            elif len(rows) < n:
                node = replace(node, state="alive")
                rows.append(row)
                self.beams.append(len(self.tree))
            self.tree.append(node)
        self._keep(closed)
        return rows

    def _keep(self, closed: list[_Ended]) -> None:
        self.ended = sorted(self.ended + closed, key=lambda one: -one.score)[: self.settings.n_beams]
        kept = {one.node for one in self.ended}
        for one in closed:
            if one.node in kept:
                self.tree[one.node] = replace(self.tree[one.node], state="finished")

    def _score(self, logprob: float, length: int) -> float:
        return logprob / length**self.settings.length_penalty

    def over(self) -> bool:
        """Whether no beam goes on, or none can, by the rule of early stopping, become better than what has ended."""
        if not self.beams:
            return True
        if len(self.ended) < self.settings.n_beams:
            return False
        if self.settings.early_stopping is True:
            return True
        longest = self.settings.early_stopping == "never" and self.settings.length_penalty > 0
        length = self.settings.max_new_tokens if longest else self.depth
        best = max(self.tree[node].logprob for node in self.beams)
        return self._score(best, length) <= self.ended[-1].score

    def path(self, node: int) -> list[int]:
        """Tokens from the prompt to `node`."""
        ids: list[int] = []
        at: int | None = node
        while at is not None:
            ids.append(self.tree[at].token)
            at = self.tree[at].parent
        return ids[::-1]


def beam_search(model: GPT, tokenizer: Tokenizer, prompt: str, **settings: Any) -> list[Beam]:
    """The `n_best` likeliest texts after `prompt`, best first, all different; keywords as in `BeamSettings`.

    Raises:
        DgsgptError: as `grow_beams`.
    """
    try:
        rules = BeamSettings(**settings)
    except TypeError:
        known = ", ".join(BeamSettings.__dataclass_fields__)
        raise DgsgptError(f"unknown among the settings of beams {', '.join(settings)}; known are {known}") from None
    return grow_beams(model, tokenizer, prompt, rules).beams


def grow_beams(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    settings: BeamSettings,
    on_step: Callable[[int, int], None] | None = None,
) -> BeamResult:
    """Beams and the tree they come from; ids that the tokenizer does not have are never taken.

    `on_step(done, most)` is called after each step; an exception from it ends the search.

    Raises:
        DgsgptError: the prompt cannot be used, the tokenizer does not fit the model, or the model gives NaN.
    """
    check_vocabulary(model, tokenizer)
    ready = prepare_prompt(tokenizer, prompt, model.config.block_size)
    search = _Search(settings, tuple(tokenizer.ends_of_text))
    started, first = time.perf_counter(), 0.0
    was_training = model.training
    model.eval()
    try:
        room = len(ready.ids) + settings.max_new_tokens
        contexts = Contexts(model, context_lead(tokenizer, model.config.block_size), 1, room)
        new = [ready.ids]
        while True:
            rows = search.step(_logprobs(contexts.read(new)[:, : tokenizer.vocab_size]))
            first = first or time.perf_counter() - started
            if on_step is not None:
                on_step(search.depth, settings.max_new_tokens)
            if search.over():
                break
            contexts.select(rows)
            new = [[search.tree[node].token] for node in search.beams]
    finally:
        model.train(was_training)
    beams = [_beam(search, one, tokenizer) for one in search.ended[: settings.n_best]]
    seconds = time.perf_counter() - started
    return BeamResult(beams, search.tree, len(ready.ids), ready.cropped, search.depth, seconds, first)


def _logprobs(logits: Tensor) -> Tensor:
    """Log-probabilities [B, V] in float64 on the CPU."""
    logs = torch.log_softmax(logits.cpu().double(), dim=-1)
    if bool(logs.isnan().any()):
        raise DgsgptError("the model gave logits that are not numbers; its weights are damaged or training diverged")
    return logs


def _beam(search: _Search, one: _Ended, tokenizer: Tokenizer) -> Beam:
    ids = search.path(one.node)
    text = whole_text(b"".join(tokenizer.token_bytes(token) for token in ids if token not in search.ends))
    return Beam(text, ids, one.score, search.tree[one.node].logprob, one.by_token, one.node)


__all__ = ["Beam", "BeamResult", "BeamSettings", "EarlyStopping", "Node", "beam_search", "grow_beams"]
