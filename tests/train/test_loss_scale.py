"""Dynamic loss scaling: its rule, and that a scaled step is the plain one."""

from __future__ import annotations

from dgsgpt.train.loss_scale import LARGEST, PATIENCE, START, LossScale


def test_an_overflow_halves_the_scale_and_patience_doubles_it() -> None:
    scale = LossScale()
    scale.update(finite=False)
    assert scale.scale == START / 2
    for _ in range(PATIENCE - 1):
        scale.update(finite=True)
    assert scale.scale == START / 2
    scale.update(finite=True)
    assert scale.scale == START


def test_an_overflow_begins_the_patience_anew() -> None:
    scale = LossScale()
    for _ in range(PATIENCE - 1):
        scale.update(finite=True)
    scale.update(finite=False)
    scale.update(finite=True)
    assert scale.scale == START / 2


def test_the_scale_stays_within_its_bounds() -> None:
    scale = LossScale()
    for _ in range(30 * PATIENCE):
        scale.update(finite=True)
    assert scale.scale == LARGEST
    for _ in range(60):
        scale.update(finite=False)
    assert scale.exhausted


def test_a_restored_scale_goes_on_as_the_first_would() -> None:
    first, second = LossScale(), LossScale()
    for index in range(PATIENCE + 7):
        first.update(finite=index != 5)
    second.restore(first.state())
    for scale in (first, second):
        for _ in range(PATIENCE):
            scale.update(finite=True)
    assert first.scale == second.scale
    assert first.state() == second.state()
