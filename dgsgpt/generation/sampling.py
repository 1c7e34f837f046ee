"""How the next token is chosen from logits.

The order is: repetition penalty, temperature, top-k, top-p, min-p, draw; it is that of transformers. Each rule (see
`dgsgpt.generation.rules`) sees what the one before has left. At temperature 0 the likeliest token after the penalty is
taken, and no other rule matters.

The draw is the Gumbel-max trick (Gumbel 1954; Maddison, Tarlow & Minka 2014): every entry of the vocabulary gets noise
of its own, and the token of the largest sum of logit and noise is taken, which follows the distribution exactly. The
noise depends on the seed and the step alone, not on the model or the filters. So two models with one tokenizer and one
seed share it: where they give the same probabilities they take the same token, and where their texts part it is the
models that differ, not the dice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgsgpt.errors import DgsgptError
from dgsgpt.generation import rules

# Uniform numbers are multiples of 2^-53 and may be 0, whose noise would be infinite.
_LEAST_UNIFORM = 2.0**-54


@dataclass(frozen=True)
class Sampling:
    """The rules of one generation.

    temperature 0 always takes the likeliest token; top_k keeps the k likeliest; top_p keeps the likeliest tokens until
    their probability reaches p; min_p keeps those at least p times as likely as the likeliest. None switches a filter
    off. repetition_penalty above 1 makes tokens less likely that the context or the new text has already: those of the
    prompt as far as it fits, and all new ones; 1 changes nothing. `seed` None draws a new one.

    Raises:
        DgsgptError: a value is out of bounds.
    """

    max_new_tokens: int = 128
    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        check_whole("max_new_tokens", self.max_new_tokens, 1, 10_000_000)
        if not _is_number(self.temperature) or not 0 <= self.temperature <= 100:
            raise DgsgptError(f"temperature={self.temperature!r} must be from 0 (always the likeliest token) to 100")
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 1, None)
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise DgsgptError(f"top_p={self.top_p!r} must be greater than 0 and at most 1; 1 keeps all tokens")
        if self.min_p is not None and (not _is_number(self.min_p) or not 0 <= self.min_p <= 1):
            raise DgsgptError(f"min_p={self.min_p!r} must be from 0 (keeps all tokens) to 1")
        if not _is_number(self.repetition_penalty) or not 0.01 <= self.repetition_penalty <= 100:
            raise DgsgptError(
                f"repetition_penalty={self.repetition_penalty!r} must be from 0.01 to 100; 1 changes nothing"
            )
        if self.seed is not None:
            check_whole("seed", self.seed, 0, 2**63 - 1)
        if not all(isinstance(text, str) and text for text in self.stops):
            raise DgsgptError(f"stop={self.stop!r} must be a text or texts that are not empty")

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts; generation ends before the first of them appears."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def is_top_k_alone(self) -> bool:
        """Whether tokens are drawn, and of all rules that could take some out top-k alone is on."""
        others = self.top_p is not None or self.min_p is not None or self.repetition_penalty != 1
        return self.temperature > 0 and self.top_k is not None and not others


def filter_logits(logits: Tensor, sampling: Sampling, seen: Tensor | None = None) -> Tensor:
    """Logits [V] after all rules, in float64 on the CPU; tokens that are out are -inf.

    `seen` [V] (bool, on the CPU) marks the tokens that the repetition penalty is for; None is none. Among equal logits
    the lower id comes first. At least one token is left. A top_k above V keeps all.

    Raises:
        DgsgptError: NaN or +inf among the logits, or no finite one.
    """
    scores = logits.detach().to("cpu", torch.float64)
    if not math.isfinite(scores.max()):  # max is NaN if any logit is
        raise DgsgptError("the model gave logits that are not numbers; its weights are damaged or training diverged")
    if seen is not None and sampling.repetition_penalty != 1:
        scores = rules.penalize_repetition(scores, seen, sampling.repetition_penalty)
    if sampling.temperature == 0:
        return rules.keep_likeliest(scores)
    scores = rules.scale(scores, sampling.temperature)
    if sampling.top_k is not None:
        scores = rules.keep_top_k(scores, sampling.top_k)
    if sampling.top_p is not None:
        scores = rules.keep_top_p(scores, sampling.top_p)
    if sampling.min_p is not None:
        scores = rules.keep_min_p(scores, sampling.min_p)
    return scores


def sample_token(
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    seen: Tensor | None = None,
    room: Tensor | None = None,
) -> int:
    """One token id drawn from logits [V]; `generator` is a CPU generator, so a seed means the same on every device.

    Each draw takes V numbers from the generator, whatever the filters are; at temperature 0 nothing is drawn. `room`
    [V] in float64 may be given for these, to be used again and again.

    Raises:
        DgsgptError: see `filter_logits`.
    """
    few = _likeliest(logits, sampling) if sampling.is_top_k_alone else None
    if few is not None:
        return _draw_of(*few, _uniform(len(logits), generator, room))
    scores = filter_logits(logits, sampling, seen)
    if sampling.temperature == 0:
        return int(torch.argmax(scores))
    return int(torch.argmax(gumbel_noise(len(scores), generator, room).add_(scores)))


def _likeliest(logits: Tensor, sampling: Sampling) -> tuple[Tensor, list[float]] | None:
    """Ids [k] and scores that `filter_logits` leaves where top-k is the only filter, at a third of the cost.

    None where the largest logit is no number, or where equal scores lie about the limit.
    """
    assert sampling.top_k is not None
    if sampling.top_k >= len(logits):
        return None
    values, ids = torch.topk(logits.detach().to("cpu", torch.float64), sampling.top_k + 1)
    found = values.tolist()
    if not math.isfinite(found[0]):
        return None
    scores = [(value - found[0]) / sampling.temperature for value in found]
    return (ids[:-1], scores[:-1]) if scores[-2] > scores[-1] else None


def _draw_of(ids: Tensor, scores: list[float], uniform: Tensor) -> int:
    """The id whose sum of score and noise is the largest, of the numbers [V] that all noise is made of."""
    numbers = uniform.index_select(0, ids).tolist()
    sums = [score - math.log(-math.log(max(u, _LEAST_UNIFORM))) for score, u in zip(scores, numbers, strict=True)]
    return int(ids[sums.index(max(sums))])


def _uniform(count: int, generator: torch.Generator | None, room: Tensor | None) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=generator, out=room)


def gumbel_noise(count: int, generator: torch.Generator | None = None, room: Tensor | None = None) -> Tensor:
    """Independent standard Gumbel numbers [count] in float64, in `room` if given: -log(-log u) of u between 0 and 1."""
    return _uniform(count, generator, room).clamp_(min=_LEAST_UNIFORM).log_().neg_().log_().neg_()


def check_number(name: str, value: object, least: float, most: float) -> None:
    """Refuse what is no finite number from `least` to `most`.

    Raises:
        DgsgptError: it is refused, by its name.
    """
    if not _is_number(value) or not least <= float(value) <= most:  # type: ignore[arg-type]
        raise DgsgptError(f"{name}={value!r} must be a number from {least} to {most}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_whole(name: str, value: object, least: int, most: int | None) -> None:
    """Refuse what is no whole number from `least` to `most`, None being no upper bound.

    Raises:
        DgsgptError: it is refused, by its name.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        upto = f" and at most {most:,}" if most is not None else ""
        raise DgsgptError(f"{name}={value!r} must be a whole number of at least {least}{upto}")


__all__ = ["Sampling", "check_number", "check_whole", "filter_logits", "gumbel_noise", "sample_token"]
