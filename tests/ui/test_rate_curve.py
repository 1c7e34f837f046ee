"""The course of the learning rate: every corner of the schedule is drawn and told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import TrainConfig, build_config
from dgsgpt.train.schedule import learning_rate
from dgsgpt.ui import rate_curve, train_view
from dgsgpt.ui.state import Metrics
from dgsgpt.ui.theme import LIGHT

KINDS = ["cosine", "wsd", "linear", "constant"]


def train(kind: str, steps: int, warmup: int, **schedule: Any) -> TrainConfig:
    schedule = {"kind": kind, "warmup_steps": warmup, **schedule}
    return TrainConfig.model_validate({"steps": steps, "schedule": schedule})


@given(
    st.sampled_from(KINDS), st.integers(1, 5000), st.integers(0, 6000), st.floats(0.01, 1.0), st.floats(0.0, 1.0),
    st.integers(2, 240),
)  # fmt: skip
def test_straight_pieces_between_the_drawn_steps_are_the_schedule(
    kind: str, steps: int, warmup: int, share: float, floor: float, count: int
) -> None:
    config = train(kind, steps, warmup, decay_share=share, min_lr_ratio=floor)
    drawn = rate_curve.curve_steps(config, count)
    assert drawn == sorted(set(drawn))
    assert drawn[0] == 0
    assert drawn[-1] == steps - 1
    every = np.array([learning_rate(s, config) for s in range(steps)])
    # A chord over 1/n of half a cosine leaves it by pi^2 / 16 / n^2 at most; rounding may double a chord.
    allowed = 2.5 / (count - 1) ** 2 if kind == "cosine" else 1e-6
    assert np.abs(np.interp(np.arange(steps), drawn, every[drawn]) - every).max() <= allowed * config.lr


def test_a_run_of_a_hundred_million_steps_is_drawn_at_once() -> None:
    config = train("wsd", 100_000_000, 1000)
    turn = rate_curve.last_full_step(config)
    assert learning_rate(turn, config) == config.lr > learning_rate(turn + 1, config)
    assert turn in rate_curve.curve_steps(config, 120)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (train("cosine", 600, 50), "Rises to 1e-3 over 50\u00a0steps, then falls along half a cosine to 1e-4."),
        (train("linear", 600, 0), "Begins at 1e-3, then falls in a straight line to 1e-4."),
        (train("constant", 600, 1), "Rises to 1e-3 over 1\u00a0step and stays there."),
        (train("cosine", 600, 0, min_lr_ratio=1.0), "Begins at 1e-3 and stays there."),
        (train("cosine", 50, 50), "Rises over the whole run, to 1e-3: the warm-up is not shorter than the run."),
    ],
)
def test_the_course_is_told_in_a_sentence(config: TrainConfig, words: str) -> None:
    assert rate_curve.in_words(config) == words


def test_a_warmup_stable_decay_tells_how_long_it_holds() -> None:
    config = train("wsd", 1000, 100, decay_share=0.2)
    held = rate_curve.last_full_step(config)
    assert f", holds it to step {held + 1}, then falls in a straight line to 1e-4." in rate_curve.in_words(config)
    assert 790 <= held <= 800


@pytest.mark.parametrize("kind", KINDS)
def test_the_chart_of_a_run_plans_the_schedule(kind: str) -> None:
    import pandas as pd

    config = build_config({"train": {"steps": 500, "schedule": {"kind": kind, "warmup_steps": 50}}})
    figure = train_view.rate_chart(LIGHT, Metrics(pd.DataFrame(), 0, 0), "#000000", config)
    (planned,) = [trace for trace in figure.data if trace.name == "planned"]
    assert list(planned.y) == [learning_rate(int(x) - 1, config.train) for x in planned.x]
