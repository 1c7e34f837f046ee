"""Figures from columns: what is drawn, what is hidden, and that the note says so."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.metrics import ema
from dgsgpt.ui import charts
from dgsgpt.ui.loss_chart import AXES, MAX_POINTS, Curve, LossOptions, columns, loss_chart
from dgsgpt.ui.theme import DARK, LIGHT


def frame(n: int = 100, noise: float = 0.02, seed: int = 0) -> pd.DataFrame:
    step = np.arange(1, n + 1) * 10
    rng = np.random.default_rng(seed)
    loss = 2.0 + 3.0 * np.exp(-step / 150) + rng.normal(0, noise, n)
    val = np.where(step % 100 == 0, loss + 0.05, np.nan)
    return pd.DataFrame(
        {
            "step": step,
            "tokens": step * 128.0,
            "flops": step * 1e9,
            "time_s": step * 0.05,
            "loss/train": loss,
            "loss/val": val,
        }
    )


def named(figure: object, name: str) -> list:
    return [trace for trace in figure.data if trace.name == name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("axis", sorted(AXES))
def test_curve_is_the_debiased_average_over_the_chosen_axis(axis: str) -> None:
    data = frame()
    chart = loss_chart(LIGHT, [Curve("a", 0, data, main=True)], [], LossOptions(axis, 0.9))
    (trace,) = named(chart.figure, "a")
    x, y = columns(data, "loss/train", axis)
    np.testing.assert_allclose(trace.y, ema(y, 0.9))
    ratio = np.asarray(trace.x) / x
    np.testing.assert_allclose(ratio, ratio[0])  # the time axis may be in minutes or hours


def test_only_the_selected_run_has_raw_validation_and_events() -> None:
    curves = [Curve("a", 0, frame(), main=True), Curve("b", 1, frame(seed=1))]
    events = [
        {"kind": "checkpoint", "step": 500},
        {"kind": "health", "step": 300, "message": "spike"},
        {"kind": "eval"},
    ]
    figure = loss_chart(LIGHT, curves, events, LossOptions()).figure
    assert len(named(figure, "raw")) == 1
    assert len(named(figure, "validation")[0].x) == 10
    assert list(named(figure, "saved")[0].x) == [500]
    assert list(named(figure, "health")[0].x) == [300]
    assert list(named(figure, "samples")[0].x) == []
    assert named(figure, "a")[0].line.color == LIGHT.run(0)
    assert named(figure, "b")[0].line.color == LIGHT.run(1)
    assert [shape.x0 for shape in figure.layout.shapes] == [300]


def test_events_lie_at_their_step_on_every_axis() -> None:
    event = [{"kind": "checkpoint", "step": 500}]
    curve = [Curve("a", 0, frame(), main=True)]
    on_tokens = loss_chart(LIGHT, curve, event, LossOptions("Tokens")).figure
    assert named(on_tokens, "saved")[0].x[0] == pytest.approx(500 * 128)


def test_labels_at_the_right_edge_do_not_overlap() -> None:
    curves = [Curve(f"run{i}", i, frame(seed=i, noise=0.001), main=i == 0) for i in range(6)]
    figure = loss_chart(LIGHT, curves, [], LossOptions()).figure
    low, high = figure.layout.yaxis.range
    pixels_per_nat = (charts.MAIN_HEIGHT - 26) * 0.845 / (high - low)
    labels = [a for a in figure.layout.annotations if "run" in a.text]
    heights = sorted(a.y * pixels_per_nat + a.yshift for a in labels)
    assert len(labels) == 6
    assert min(np.diff(heights)) >= 14.9


def test_live_run_is_labelled_at_its_own_end_with_room_to_the_right() -> None:
    figure = loss_chart(LIGHT, [Curve("a", 0, frame(), True, True, 5000)], [], LossOptions()).figure
    (label,) = [a for a in figure.layout.annotations if a.text.endswith(" a")]
    assert label.x == 1000
    assert figure.layout.xaxis.range == (0, 1200)
    near_end = loss_chart(LIGHT, [Curve("a", 0, frame(), True, True, 1050)], [], LossOptions()).figure
    assert near_end.layout.xaxis.range == (0, 1050)


def test_caption_says_what_was_left_out() -> None:
    long = frame(20_000)
    chart = loss_chart(LIGHT, [Curve("a", 0, long, main=True)], [], LossOptions())
    assert chart.drawn <= MAX_POINTS < chart.total == 20_000
    assert "extremes kept" in chart.caption
    assert "○ validation" in chart.caption
    _, high = chart.figure.layout.yaxis.range
    above = int((ema(long["loss/train"].to_numpy(), 0.9) > high).sum())
    assert f"{above}\u00a0points" in chart.caption.replace("\u202f", "")


def test_caption_claims_nothing_when_all_is_shown() -> None:
    chart = loss_chart(LIGHT, [Curve("a", 0, frame(5).drop(columns="loss/val"), main=True)], [], LossOptions())
    assert chart.caption == "5\u00a0points, EMA 0.9 on all of them"


@pytest.mark.parametrize("log_y", [False, True])
def test_empty_and_single_point_runs_draw(log_y: bool) -> None:
    empty = pd.DataFrame({"step": np.empty(0, dtype="int64")})
    options = LossOptions(log_y=log_y)
    for curves in ([], [Curve("a", 0, empty, main=True)], [Curve("a", 0, frame(1), main=True)]):
        chart = loss_chart(DARK, curves, [{"kind": "health", "step": 3}], options)
        low, high = chart.figure.layout.yaxis.range
        assert math.isfinite(low)
        assert low < high
        json.loads(chart.figure.to_json())


def test_names_are_text_in_labels() -> None:
    figure = loss_chart(LIGHT, [Curve("<a href=x>", 0, frame(), main=True)], [], LossOptions()).figure
    assert not [a.text for a in figure.layout.annotations if "<a" in a.text]


def test_missing_values_leave_gaps_out() -> None:
    data = frame()
    data.loc[10:20, "loss/train"] = np.nan
    chart = loss_chart(LIGHT, [Curve("a", 0, data, main=True)], [], LossOptions())
    assert np.isfinite(named(chart.figure, "a")[0].y).all()
    assert chart.total == 89


def test_palette_decides_the_colours() -> None:
    light, dark = charts.fig(LIGHT, 100), charts.fig(DARK, 100)
    assert light.layout.xaxis.linecolor == LIGHT["line"]
    assert dark.layout.xaxis.linecolor == DARK["line"]
    assert light.layout.showlegend is False
    assert not light.layout.xaxis.showgrid


@given(st.floats(min_value=1e-6, max_value=1e9), st.integers(min_value=1, max_value=10))
def test_ticks_are_few_and_cover_the_span(span: float, at_most: int) -> None:
    pace = charts.nice_step(span, at_most)
    assert pace * at_most >= span * (1 - 1e-6)
    assert span / pace > at_most / 2.6  # and not far too few


@given(st.floats(min_value=1e-5, max_value=1e4), st.floats(min_value=1.05, max_value=1e4))
def test_log_ticks_are_round_values_inside(low: float, ratio: float) -> None:
    ticks = charts.log_ticks(low, low * ratio)
    assert ticks == sorted(ticks)
    assert len(ticks) <= 6
    assert all(low * (1 - 1e-9) <= tick <= low * ratio * (1 + 1e-9) for tick in ticks)


def test_small_chart_draws_its_limit_and_survives_no_data() -> None:
    figure = charts.small(LIGHT, [0, 10], [0.5, 2.0], "#123456", "norm", log_y=True, limit=1.0, dots=True)
    assert figure.layout.shapes[0].y0 == 1.0
    assert figure.data[0].mode == "lines+markers"
    assert len(charts.small(LIGHT, [], [], "#123456", "norm", log_y=True).data) == 1
