"""The learning rate as a pure function of the step and the saved horizon; no torch, so that the dashboard draws it."""

from __future__ import annotations

import math

from dgsgpt.config import TrainConfig


def learning_rate(step: int, train: TrainConfig) -> float:
    """Peak learning rate times `rate_share`."""
    return train.lr * rate_share(step, train)


def rate_share(step: int, train: TrainConfig) -> float:
    """Share of its peak that every rate has in optimizer step `step` (0 is the first) of a run of `train.steps`.

    It rises linearly over `schedule.warmup_steps` (over the whole run if that is shorter, so that a config can be cut
    short by `train.steps` alone), then falls to `schedule.min_lr_ratio` at the last step: along half a cosine
    (Loshchilov and Hutter 2017, without restarts), along a line, or along a line in the last `schedule.decay_share` of
    the steps only (wsd: warm-up, stable, decay; Hu et al. 2024, MiniCPM, section 4), or not at all.
    """
    schedule = train.schedule
    warmup_steps = min(schedule.warmup_steps, train.steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule.kind == "constant":
        return 1.0
    begin = warmup_steps
    if schedule.kind == "wsd":
        begin = max(begin, train.steps - max(1, round(schedule.decay_share * train.steps)) - 1)
    decay_steps = max(1, train.steps - 1 - begin)
    progress = min(1.0, max(0.0, (step - begin) / decay_steps))
    left = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.kind == "cosine" else 1 - progress
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * left
