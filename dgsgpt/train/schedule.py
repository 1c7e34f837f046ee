"""The learning rate as a pure function of the step and the saved horizon; no torch, so that the dashboard draws it."""

from __future__ import annotations

import math

from dgsgpt.config import TrainConfig


def learning_rate(step: int, train: TrainConfig) -> float:
    """Rate used by optimizer step `step` (0 is the first), for a run of `train.steps`.

    It rises linearly over `schedule.warmup_steps` (over the whole run if that is shorter, so that a config can be cut
    short by `train.steps` alone), then falls to `schedule.min_lr_ratio * lr` at the last step:
    along half a cosine (Loshchilov and Hutter 2017, without restarts), along a line, or not at all.
    """
    schedule = train.schedule
    warmup_steps = min(schedule.warmup_steps, train.steps)
    if step < warmup_steps:
        return train.lr * (step + 1) / warmup_steps
    if schedule.kind == "constant":
        return train.lr
    decay_steps = max(1, train.steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / decay_steps)
    share = 1 - progress if schedule.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return train.lr * (schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * share)
