"""What two checkpoints may be compared by, and what is read off their curves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import build_config
from dgsgpt.ui import comparison
from dgsgpt.ui.comparison import Curve
from dgsgpt.ui.theme import LIGHT
from tests.run_factory import config

SAME = {"data_fingerprint": "d", "tokenizer_sha256": "t", "corpus": "austen", "bpb_val": 1.5, "loss_val": 3.0}


def other(**changes: Any) -> dict[str, Any]:
    return {**SAME, **changes}


# ---------------------------------------------------------------- comparable
def test_same_data_and_tokenizer_compare_losses() -> None:
    allowed = comparison.comparable([SAME, other(loss_val=2.9)], [config(), config()])
    assert (allowed.losses, allowed.bits, allowed.metric) == (True, True, "loss/val")


def test_another_sample_of_the_same_text_is_said() -> None:
    allowed = comparison.comparable([SAME, SAME], [config(eval_tokens=4096), config(eval_tokens=8192)])
    assert allowed.losses
    assert "eval_tokens" in allowed.note


def test_other_tokenizer_of_the_same_text_compares_only_bits_per_byte() -> None:
    b = other(data_fingerprint="e", tokenizer_sha256="u")
    allowed = comparison.comparable([SAME, b], [config(), config()])
    assert (allowed.losses, allowed.bits, allowed.metric) == (False, True, "bpb/val")
    shown = {row.label: row.difference for row in comparison.rows([SAME, b], allowed)}
    assert shown["Loss"] is None
    assert shown["Bits per byte"] == 0


@pytest.mark.parametrize(
    "b",
    [
        other(data_fingerprint="e", corpus="plays"),
        other(data_fingerprint=None),
        {},
        other(data_fingerprint="e", corpus="/data/own.txt"),
    ],
)
def test_other_or_unknown_data_compare_nothing(b: dict[str, Any]) -> None:
    allowed = comparison.comparable([SAME, b], [config(), config()])
    assert not allowed.losses
    assert not allowed.bits
    assert all(row.difference is None for row in comparison.rows([SAME, b], allowed))


def test_two_files_of_one_name_are_not_taken_for_one_text() -> None:
    a, b = other(corpus="/x/own.txt"), other(corpus="/x/own.txt", data_fingerprint="e", tokenizer_sha256="u")
    assert not comparison.comparable([a, b], [config(), config()]).bits


@pytest.mark.parametrize("bad", [None, "3.0", float("nan"), float("inf"), True, [1], 10**400])
def test_a_figure_that_is_none_has_no_difference(bad: object) -> None:
    rows = comparison.rows([SAME, other(loss_val=bad)], comparison.comparable([SAME, SAME], [config(), config()]))
    (loss,) = [row for row in rows if row.label == "Loss"]
    assert loss.values == (3.0, None)
    assert loss.difference is None


@given(st.floats(0, 50), st.floats(0, 50))
def test_differences_are_a_minus_b(x: float, y: float) -> None:
    a, b = other(loss_val=x), other(loss_val=y)
    rows = comparison.rows([a, b], comparison.comparable([a, b], [config(), config()]))
    (loss,) = [row for row in rows if row.label == "Loss"]
    assert loss.difference == x - y


def test_three_are_compared_only_if_all_agree() -> None:
    configs = [config()] * 3
    assert comparison.comparable([SAME] * 3, configs).losses
    last = other(data_fingerprint="e", tokenizer_sha256="u")
    allowed = comparison.comparable([SAME, SAME, last], configs)
    assert (allowed.losses, allowed.bits) == (False, True)
    assert next(row.values for row in comparison.rows([SAME, SAME, last], allowed)) == (1.5, 1.5, 1.5)
    assert all(row.difference is None for row in comparison.rows([SAME, SAME, last], allowed))


# ---------------------------------------------------------------- colours
@given(st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_no_two_sides_have_one_colour_and_the_first_keeps_its_own(slots: list[int]) -> None:
    given_slots = comparison.color_slots(slots)
    assert given_slots[0] == slots[0]
    assert len({slot % 8 for slot in given_slots}) == len(slots)
    if len({slot % 8 for slot in slots}) == len(slots):
        assert given_slots == slots


# ---------------------------------------------------------------- settings
def test_only_settings_that_differ_are_listed() -> None:
    rows, total = comparison.setting_rows([config(lr=6e-4), config(lr=1e-3)])
    assert rows == [("train.lr", "6e-4", "0.001")]
    assert total > 30


def test_a_section_that_is_off_shows_dashes() -> None:
    rows, _ = comparison.setting_rows([config(moe=True), config()])
    assert ("model.moe.n_expert", "4", "–") in rows


def test_of_an_imported_model_only_the_model_is_compared() -> None:
    rows, total = comparison.setting_rows([config(lr=6e-4), config(moe=True, lr=1e-3)], model_only=True)
    assert ("model.moe.n_expert", "–", "4") in rows
    assert all(path.startswith("model.") for path, *_ in rows)
    assert total < comparison.setting_rows([config(), config(moe=True)])[1]


def test_settings_of_four_are_listed_where_any_differs() -> None:
    rows, _ = comparison.setting_rows([config(), config(), config(seed=7), config()])
    assert rows == [("train.seed", "1", "1", "7", "1")]


def test_values_are_short() -> None:
    shown = [comparison.shown(v) for v in (None, True, False, 12480, 0.1, 3e-4, 0.0, "/a/b/own.txt", "austen")]
    assert shown == ["–", "on", "off", "12\u202f480", "0.1", "3e-4", "0", "own.txt", "austen"]


# ---------------------------------------------------------------- curves
def frame(steps: list[int], losses: list[float], flops: float = 1e9) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "step": steps,
            "tokens": np.array(steps) * 100.0,
            "flops": np.array(steps) * flops,
            "time_s": np.array(steps) * 1.0,
            "loss/val": losses,
        }
    )


def sides(until: int = 40) -> list[Curve]:
    return [
        Curve("A", "one", 0, frame([10, 20, 30, 40, 50], [5.0, 4.0, 3.0, 2.0, 1.0]), until),
        Curve("B", "two", 2, frame([10, 20, 30], [6.0, 5.5, 5.0], 4e9), 30),
    ]


def test_curves_end_where_the_checkpoint_was_saved() -> None:
    chart = comparison.validation_chart(LIGHT, sides(40), "Step", "loss/val")
    a, b = chart.figure.data
    assert list(a.x) == [10, 20, 30, 40]
    assert list(b.x) == [10, 20, 30]
    assert [note.text for note in chart.figure.layout.annotations] == ["<b>A</b> 2.0000", "<b>B</b> 5.0000"]


def test_both_are_read_off_where_the_shorter_ends() -> None:
    assert "A 3.0000, B 5.0000" in comparison.validation_chart(LIGHT, sides(), "Step", "loss/val").note
    # At equal FLOPs A, the cheaper, has ended long before B's second point: 4e10 is B's first.
    assert "A 2.0000, B 6.0000" in comparison.validation_chart(LIGHT, sides(), "FLOPs", "loss/val").note


def test_curves_that_never_overlap_are_not_read_off() -> None:
    far = [sides()[0], Curve("B", "two", 2, frame([100, 200], [6.0, 5.0]), 200)]
    chart = comparison.validation_chart(LIGHT, far, "Step", "loss/val")
    assert chart.note == ""
    assert chart.drawn


@pytest.mark.parametrize("axis", comparison.AXES)
def test_four_are_read_off_where_all_have_been(axis: str) -> None:
    four = [Curve(letter, letter, i, frame([10, 20, 30], [5.0 - i, 4.0 - i, 3.0 - i]), 30) for i, letter in
            enumerate("ABCD")]  # fmt: skip
    chart = comparison.validation_chart(LIGHT, four, axis, "loss/val")
    assert chart.note.endswith("the most all have: A 3.0000, B 2.0000, C 1.0000, D 0.0000")
    assert [note.text[3] for note in chart.figure.layout.annotations] == list("DCBA")


def test_labels_that_would_overlap_are_pushed_apart() -> None:
    near = [Curve(letter, letter, i, frame([10, 20], [5.0, 3.0 + i / 1000]), 20) for i, letter in enumerate("ABC")]
    figure = comparison.validation_chart(LIGHT, near, "Step", "loss/val").figure
    assert [round(note.yshift) for note in figure.layout.annotations] == [0, 15, 30]


def test_an_imported_model_has_no_curve_and_that_is_said() -> None:
    imported = Curve("C", "old", 3, pd.DataFrame({"step": []}), 1)
    chart = comparison.validation_chart(LIGHT, [*sides(), imported], "Step", "loss/val")
    assert "no curve of C" in chart.note
    assert "the most both have: A 3.0000, B 5.0000" in chart.note


@pytest.mark.parametrize("axis", comparison.AXES)
def test_runs_without_validation_give_an_empty_chart(axis: str) -> None:
    empty = [Curve("A", "x", 0, pd.DataFrame({"step": []}), 5), Curve("B", "y", 1, pd.DataFrame(), 5)]
    assert not comparison.validation_chart(LIGHT, empty, axis, "loss/val").drawn


def test_curve_of_one_checkpoint_twice_has_both_letters() -> None:
    same = [Curve(letter, "one", 0, frame([10, 20], [5.0, 4.0]), 20) for letter in "AB"]
    chart = comparison.validation_chart(LIGHT, same, "Step", "loss/val")
    assert [note.yshift for note in chart.figure.layout.annotations] == [13, -13]


def test_names_of_runs_are_never_markup() -> None:
    side = Curve("A", "<img src=x onerror=alert(1)>", 0, frame([1, 2], [2.0, 1.0]), 2)
    assert "<img" not in comparison.validation_chart(LIGHT, [side], "Step", "loss/val").figure.to_json()


def test_config_of_another_context_is_another_sample() -> None:
    longer = build_config({**config().model_dump(), "model": {**config().model.model_dump(), "block_size": 64}})
    assert "sampled differently" in comparison.comparable([SAME, SAME], [config(), longer]).note
