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
from dgsgpt.ui.comparison import Side
from dgsgpt.ui.theme import LIGHT
from tests.run_factory import config

SAME = {"data_fingerprint": "d", "tokenizer_sha256": "t", "corpus": "austen", "bpb_val": 1.5, "loss_val": 3.0}


def other(**changes: Any) -> dict[str, Any]:
    return {**SAME, **changes}


# ---------------------------------------------------------------- comparable
def test_same_data_and_tokenizer_compare_losses() -> None:
    allowed = comparison.comparable(SAME, other(loss_val=2.9), config(), config())
    assert (allowed.losses, allowed.bits, allowed.metric) == (True, True, "loss/val")


def test_another_sample_of_the_same_text_is_said() -> None:
    allowed = comparison.comparable(SAME, SAME, config(eval_tokens=4096), config(eval_tokens=8192))
    assert allowed.losses
    assert "eval_tokens" in allowed.note


def test_other_tokenizer_of_the_same_text_compares_only_bits_per_byte() -> None:
    b = other(data_fingerprint="e", tokenizer_sha256="u")
    allowed = comparison.comparable(SAME, b, config(), config())
    assert (allowed.losses, allowed.bits, allowed.metric) == (False, True, "bpb/val")
    shown = {row.label: row.difference for row in comparison.rows(SAME, b, allowed)}
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
    allowed = comparison.comparable(SAME, b, config(), config())
    assert not allowed.losses
    assert not allowed.bits
    assert all(row.difference is None for row in comparison.rows(SAME, b, allowed))


def test_two_files_of_one_name_are_not_taken_for_one_text() -> None:
    a, b = other(corpus="/x/own.txt"), other(corpus="/x/own.txt", data_fingerprint="e", tokenizer_sha256="u")
    assert not comparison.comparable(a, b, config(), config()).bits


@pytest.mark.parametrize("bad", [None, "3.0", float("nan"), float("inf"), True, [1], 10**400])
def test_a_figure_that_is_none_has_no_difference(bad: object) -> None:
    rows = comparison.rows(SAME, other(loss_val=bad), comparison.comparable(SAME, SAME, config(), config()))
    (loss,) = [row for row in rows if row.label == "Loss"]
    assert loss.a == 3.0
    assert loss.b is None
    assert loss.difference is None


@given(st.floats(0, 50), st.floats(0, 50))
def test_differences_are_a_minus_b(x: float, y: float) -> None:
    a, b = other(loss_val=x), other(loss_val=y)
    rows = comparison.rows(a, b, comparison.comparable(a, b, config(), config()))
    (loss,) = [row for row in rows if row.label == "Loss"]
    assert loss.difference == x - y


# ---------------------------------------------------------------- settings
def test_only_settings_that_differ_are_listed() -> None:
    rows, total = comparison.setting_rows(config(lr=6e-4), config(lr=1e-3))
    assert rows == [("train.lr", "6e-4", "0.001")]
    assert total > 30


def test_a_section_that_is_off_shows_dashes() -> None:
    rows, _ = comparison.setting_rows(config(moe=True), config())
    assert ("model.moe.n_expert", "4", "–") in rows


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


def sides(until: int = 40) -> list[Side]:
    return [
        Side("A", "one", 0, frame([10, 20, 30, 40, 50], [5.0, 4.0, 3.0, 2.0, 1.0]), until),
        Side("B", "two", 2, frame([10, 20, 30], [6.0, 5.5, 5.0], 4e9), 30),
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
    far = [sides()[0], Side("B", "two", 2, frame([100, 200], [6.0, 5.0]), 200)]
    chart = comparison.validation_chart(LIGHT, far, "Step", "loss/val")
    assert chart.note == ""
    assert chart.drawn


@pytest.mark.parametrize("axis", comparison.AXES)
def test_runs_without_validation_give_an_empty_chart(axis: str) -> None:
    empty = [Side("A", "x", 0, pd.DataFrame({"step": []}), 5), Side("B", "y", 1, pd.DataFrame(), 5)]
    assert not comparison.validation_chart(LIGHT, empty, axis, "loss/val").drawn


def test_curve_of_one_checkpoint_twice_has_both_letters() -> None:
    same = [Side(letter, "one", 0, frame([10, 20], [5.0, 4.0]), 20) for letter in "AB"]
    chart = comparison.validation_chart(LIGHT, same, "Step", "loss/val")
    assert [note.yshift for note in chart.figure.layout.annotations] == [13, -13]


def test_names_of_runs_are_never_markup() -> None:
    side = Side("A", "<img src=x onerror=alert(1)>", 0, frame([1, 2], [2.0, 1.0]), 2)
    assert "<img" not in comparison.validation_chart(LIGHT, [side], "Step", "loss/val").figure.to_json()


@given(st.text(alphabet="ab ", max_size=30), st.text(alphabet="ab ", max_size=30))
def test_texts_are_equal_before_they_part_and_part_at_a_word(a: str, b: str) -> None:
    at = comparison.parting(a, b)
    if at is None:
        assert a == b
    else:
        assert a[:at] == b[:at]
        assert at == 0 or a[at - 1].isspace()
        assert a[at:].split(" ")[0] != b[at:].split(" ")[0] or a[at:] != b[at:]


def test_config_of_another_context_is_another_sample() -> None:
    longer = build_config({**config().model_dump(), "model": {**config().model.model_dump(), "block_size": 64}})
    assert "sampled differently" in comparison.comparable(SAME, SAME, config(), longer).note
