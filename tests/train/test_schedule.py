from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import TrainConfig, build_config
from dgsgpt.train.schedule import learning_rate


def train(
    kind: str = "cosine", steps: int = 100, warmup: int = 10, ratio: float = 0.1, decay: float = 0.2
) -> TrainConfig:
    schedule = {"kind": kind, "warmup_steps": warmup, "min_lr_ratio": ratio, "decay_share": decay}
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


@given(st.sampled_from(["cosine", "linear", "constant", "wsd"]), st.integers(1, 50), st.data())
def test_the_rate_is_positive_and_never_above_its_peak(kind: str, steps: int, data: st.DataObject) -> None:
    config = train(kind, steps, warmup=data.draw(st.integers(0, 2 * steps)))
    rates = [learning_rate(s, config) for s in range(steps)]
    assert all(0 < r <= config.lr * (1 + 1e-9) for r in rates)


def test_wsd_holds_the_peak_and_falls_along_a_line_at_the_end() -> None:
    config = train("wsd", steps=101, warmup=10, ratio=0.0, decay=0.2)
    rates = [learning_rate(s, config) for s in range(101)]
    assert rates[:10] == pytest.approx([0.001 * (s + 1) for s in range(10)])
    assert rates[10:81] == pytest.approx([0.01] * 71)
    assert rates[80:] == pytest.approx([0.01 * (20 - i) / 20 for i in range(21)])


def test_wsd_that_decays_all_the_time_is_linear() -> None:
    wsd, linear = train("wsd", warmup=0, decay=1.0), train("linear", warmup=0)
    assert [learning_rate(s, wsd) for s in range(100)] == pytest.approx([learning_rate(s, linear) for s in range(100)])


@given(st.sampled_from(["cosine", "linear", "wsd"]), st.integers(2, 60), st.integers(0, 20), st.floats(0.01, 1.0))
def test_after_the_warmup_the_rate_never_rises_and_ends_at_its_floor(
    kind: str, steps: int, warmup: int, decay: float
) -> None:
    config = train(kind, steps, min(warmup, steps - 2), decay=decay)
    rates = [learning_rate(s, config) for s in range(config.schedule.warmup_steps, steps)]
    assert all(b <= a for a, b in itertools.pairwise(rates))
    assert rates[-1] == pytest.approx(0.1 * config.lr)
