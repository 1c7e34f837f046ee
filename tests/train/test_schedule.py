from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import TrainConfig, build_config
from dgsgpt.train.schedule import learning_rate


def train(kind: str = "cosine", steps: int = 100, warmup: int = 10, ratio: float = 0.1) -> TrainConfig:
    schedule = {"kind": kind, "warmup_steps": warmup, "min_lr_ratio": ratio}
    return build_config({"train": {"steps": steps, "lr": 0.01, "schedule": schedule}}).train


def test_the_peak_is_reached_at_the_end_of_the_warmup() -> None:
    assert learning_rate(0, train()) == pytest.approx(0.001)
    assert learning_rate(9, train()) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("kind", "last", "middle"), [("cosine", 0.001, 0.0055), ("linear", 0.001, 0.0055), ("constant", 0.01, 0.01)]
)
def test_the_decay_ends_where_it_should(kind: str, last: float, middle: float) -> None:
    config = train(kind, steps=101, warmup=0)
    assert learning_rate(0, config) == pytest.approx(0.01)
    assert learning_rate(50, config) == pytest.approx(middle)
    assert learning_rate(100, config) == pytest.approx(last)


def test_cosine_is_the_closed_form() -> None:
    config = train(steps=101, warmup=0)
    for step in range(101):
        assert learning_rate(step, config) == pytest.approx(0.001 + 0.5 * 0.009 * (1 + math.cos(math.pi * step / 100)))


def test_a_warmup_longer_than_the_run_is_the_whole_run() -> None:
    config = train(steps=20, warmup=100)
    assert [learning_rate(s, config) for s in range(20)] == pytest.approx([0.01 * (s + 1) / 20 for s in range(20)])


@given(st.sampled_from(["cosine", "linear", "constant"]), st.integers(1, 50), st.data())
def test_the_rate_is_positive_and_never_above_its_peak(kind: str, steps: int, data: st.DataObject) -> None:
    config = train(kind, steps, warmup=data.draw(st.integers(0, 2 * steps)))
    rates = [learning_rate(s, config) for s in range(steps)]
    assert all(0 < r <= config.lr * (1 + 1e-9) for r in rates)
