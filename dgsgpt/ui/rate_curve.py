"""The learning rate over a run, in points and in words: always what `dgsgpt.train.schedule` computes."""

from __future__ import annotations

from bisect import bisect_left

from dgsgpt.config import TrainConfig
from dgsgpt.format import lr, number, plural
from dgsgpt.train.schedule import learning_rate, rate_share


def curve_steps(train: TrainConfig, count: int) -> list[int]:
    """Steps at which to draw the curve: `count` over the run, as many over its fall, and those at which it turns."""
    last, warm = train.steps - 1, min(train.schedule.warmup_steps, train.steps)
    full = max(0, last_full_step(train))  # a short fall would else be one straight line
    spread = {begin + round(i * (last - begin) / max(1, count - 1)) for begin in (0, full) for i in range(count)}
    return sorted(step for step in spread | {warm - 1, warm} if 0 <= step <= last)


def last_full_step(train: TrainConfig) -> int:
    """The last step at the peak; it is found in the schedule itself, which never rises again after the warm-up."""
    warm = min(train.schedule.warmup_steps, train.steps)
    # A hair below one: the share is a sum of two, rounded.
    return warm - 1 + bisect_left(range(warm, train.steps), True, key=lambda s: rate_share(s, train) < 1 - 1e-9)


def in_words(train: TrainConfig) -> str:
    """The course of the rate in one sentence, e.g. `Rises to 2e-3 over 50 steps, then falls …`."""
    warm, last = train.schedule.warmup_steps, train.steps - 1
    full, end = last_full_step(train), lr(learning_rate(last, train))
    if warm >= train.steps:
        return f"Rises over the whole run, to {end}: the warm-up is not shorter than the run."
    begin = f"Rises to {lr(train.lr)} over {plural(warm, 'step')}" if warm else f"Begins at {lr(train.lr)}"
    if full >= last:
        return f"{begin} and stays there."
    held = f", holds it to step {number(full + 1)}" if train.schedule.kind == "wsd" and full > warm else ""
    how = "along half a cosine" if train.schedule.kind == "cosine" else "in a straight line"
    return f"{begin}{held}, then falls {how} to {end}."
