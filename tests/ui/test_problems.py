"""What is wrong with a draft, in plain words, and the buttons that mend it."""

from __future__ import annotations

from typing import Any

import pytest

from dgsgpt.config import RunConfig
from dgsgpt.ui import form, problems


def fixes(**overrides: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """Of each problem of a draft its buttons, as `{path: {label: overrides}}`."""
    draft = form.apply(form.draft_of(RunConfig()), {k.replace("__", "."): v for k, v in overrides.items()})
    found = problems.check(draft).problems
    return {path: {fix.label: fix.overrides for fix in problem.fixes} for path, problem in found.items()}


def test_the_remedies_that_an_error_names_become_buttons() -> None:
    off = {"Turn off Update in backward pass": {"train.optimizer_in_backward": False}}
    assert fixes(train__optimizer_in_backward=True) == {
        "train.grad_clip": {"Use null": {"train.grad_clip": None}, **off}
    }
    assert fixes(train__optimizer_in_backward=True, train__grad_clip=None, train__grad_accum_steps=4) == {
        "train.grad_accum_steps": {"Use 1": {"train.grad_accum_steps": 1}, **off}
    }
    mended = fixes(train__optimizer_in_backward=True, train__grad_clip=None, train__fit_micro_batch=True)
    assert mended["train.fit_micro_batch"].keys() == {"Turn off Fit the micro-batch", *off}


def test_a_remedy_may_change_another_setting() -> None:
    found = fixes(train__weight_precision="bf16", train__precision="fp32")["train.precision"]
    assert found["Weights stored as fp32"] == {"train.weight_precision": "fp32"}
    assert found["Use bf16"] == {"train.precision": "bf16"}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("train.fit_micro_batch=True does not go", "Fit the micro-batch on does not go"),
        ("with train.optimizer_in_backward, which", "with Update in backward pass, which"),
        ("train.beta1=2.0 must be less than 1", "Beta 1 2.0 must be less than 1"),
        ("own.txt: no such text; model.nothing=3", "own.txt: no such text; model.nothing=3"),
    ],
)
def test_settings_in_errors_go_by_the_names_of_the_page(message: str, words: str) -> None:
    assert problems.plain_words(message) == words


def test_way_is_made_for_a_setting_by_all_that_bars_it_and_nothing_else() -> None:
    path = "train.optimizer_in_backward"
    barred = {"train.precision": "fp16", "train.fit_micro_batch": True}
    draft = form.apply(form.draft_of(RunConfig()), {path: True, "model.n_head": 3, **barred})
    way = problems.make_way(draft, path)
    assert way is not None
    assert way.label == "Gradient clipping null, Fit the micro-batch off, Precision auto"
    assert problems.check(form.apply(draft, way.overrides)).problems.keys() == {"model.n_head"}
    assert problems.make_way(form.draft_of(RunConfig()), path) is None
