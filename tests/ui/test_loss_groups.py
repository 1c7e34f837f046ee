"""Groups of runs, marks for what no curve can show, logarithmic axes, and runs read off at the same place."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dgsgpt.metrics import ema
from dgsgpt.ui.loss_chart import Curve, LossOptions, loss_chart
from dgsgpt.ui.loss_data import MAX_POINTS, Line, band, group_fields, group_names, lines_of, short_names, thin
from dgsgpt.ui.read_out import place, read_out
from dgsgpt.ui.theme import LIGHT
from tests.ui.test_charts import frame, named


def flat(**values: object) -> dict[str, object]:
    return {"train.seed": 1, "train.lr": 1e-3, "model.n_head": 4, "model.moe": None} | values


# ---------------------------------------------------------------- groups
def test_a_band_is_mean_lowest_and_highest_at_every_step() -> None:
    curves = [Curve(f"s{i}", i, frame(seed=i, noise=0.2), main=i == 1, group="lr 0.001") for i in range(3)]
    (line,) = lines_of(curves, LossOptions(weight=0.9))
    values = np.array([ema(frame(seed=i, noise=0.2)["loss/train"].to_numpy(), 0.9) for i in range(3)])
    np.testing.assert_allclose(line.y, values.mean(0))
    np.testing.assert_allclose(line.low, values.min(0))
    np.testing.assert_allclose(line.high, values.max(0))
    assert (line.name, line.slot, line.runs, line.main) == ("lr 0.001", 1, 3, True)
    figure = loss_chart(LIGHT, curves, [], LossOptions()).figure
    assert [len(named(figure, name)) for name in ("lowest", "highest", "lr 0.001", "raw")] == [1, 1, 1, 0]
    assert [a for a in figure.layout.annotations if "n=3" in a.text]


def test_runs_logged_at_other_steps_are_averaged_between_their_points() -> None:
    a = Line("a", 0, np.array([0.0, 10.0]), np.array([4.0, 2.0]))
    b = Line("b", 1, np.array([0.0, 5.0, 10.0]), np.array([2.0, 1.0, 1.0]))
    mean = band("both", [a, b])
    assert mean.x.tolist() == [0, 5, 10]
    assert mean.y.tolist() == [3, 2, 1.5]
    assert (mean.low.tolist(), mean.high.tolist()) == ([2, 1, 1], [4, 3, 2])


def test_a_run_cut_short_is_left_out_and_told_but_the_selected_one_never_is() -> None:
    lines = [Line(str(n), n, np.arange(n) * 1.0, np.full(n, float(n))) for n in (100, 100, 90, 4)]
    mean = band("g", lines)
    assert (mean.runs, mean.given, mean.x[-1]) == (3, 4, 89)
    assert band("g", [*lines[:3], Line("4", 4, np.arange(4.0), np.ones(4), main=True)]).x[-1] == 3
    apart = [Line("a", 0, np.array([1.0, 2.0]), np.ones(2)), Line("b", 1, np.array([5.0, 6.0]), np.ones(2))]
    assert band("g", apart).runs == 1
    curves = [Curve(f"r{n}", n, frame(n), main=n == 100, group="g") for n in (100, 99, 10)]
    chart = loss_chart(LIGHT, curves, [], LossOptions())
    assert "1\u00a0shorter run left out" in chart.caption
    assert [a for a in chart.figure.layout.annotations if "n=2 of 3" in a.text]


def test_a_group_of_one_run_says_so_and_has_no_band() -> None:
    curves = [Curve("a", 0, frame(), main=True, group="x 1"), Curve("b", 1, frame(seed=1), group="x 2")]
    chart = loss_chart(LIGHT, curves, [], LossOptions())
    assert not named(chart.figure, "lowest")
    assert len([a for a in chart.figure.layout.annotations if "n=1" in a.text]) == 2
    assert "2\u00a0groups with n=1: no band" in chart.caption


def test_runs_are_grouped_by_what_differs_besides_the_seed() -> None:
    runs = [
        flat(),
        flat(**{"train.seed": 2}),
        flat(**{"model.n_head": 8}),
        flat(**{"model.n_head": 8, "train.seed": 9}),
    ]
    assert group_fields(runs) == ["model.n_head"]
    assert group_names(runs, "seed") == ["n_head 4", "n_head 4", "n_head 8", "n_head 8"]
    assert group_names(runs, "model.n_head") == ["n_head 4", "n_head 4", "n_head 8", "n_head 8"]
    assert group_names(runs[:2], "seed") == ["all seeds"] * 2
    sparse = {k: v for k, v in flat(**{"model.moe.n_expert": 8}).items() if k != "model.moe"}
    assert group_names([flat(), sparse], "seed") == ["moe off", "moe on"]
    assert group_names([{}, flat()], "model.n_head") == ["n_head –", "n_head 4"]  # a config that cannot be read


def test_names_lose_what_all_begin_with() -> None:
    assert short_names(["books-moe8-s1", "books-gqa-s1"]) == {"books-moe8-s1": "moe8-s1", "books-gqa-s1": "gqa-s1"}
    assert short_names(["alone-s1"]) == {"alone-s1": "alone-s1"}
    assert short_names(["a", "a-b"]) == {"a": "a", "a-b": "a-b"}


# ---------------------------------------------------------------- what no curve can show
def test_steps_without_a_finite_loss_are_marked_at_their_place_and_counted() -> None:
    data = frame()
    data.loc[[10, 11, 50], "loss/train"] = np.nan
    chart = loss_chart(LIGHT, [Curve("a", 0, data, main=True)], [], LossOptions("Tokens"))
    (marks,) = named(chart.figure, "not finite")
    assert list(marks.x) == [data["tokens"][i] for i in (10, 11, 50)]
    assert marks.yaxis == "y3"  # the frame, whose edge stays under every zoom
    assert "✕ 3\u00a0steps without a finite loss" in chart.caption
    assert not named(loss_chart(LIGHT, [Curve("a", 0, frame(), main=True)], [], LossOptions()).figure, "not finite")


@pytest.mark.parametrize(("raw", "count"), [(True, 3), (False, 0)])
def test_spikes_above_the_axis_are_marked_but_the_first_drop_is_only_counted(raw: bool, count: int) -> None:
    data = frame(noise=0.0)
    data.loc[[60, 61, 80], "loss/train"] = [30.0, 31.0, 32.0]
    smooth = ema(data["loss/train"].to_numpy(), 0.99)
    chart = loss_chart(LIGHT, [Curve("a", 0, data, main=True)], [], LossOptions(weight=0.99, raw=raw))
    high = chart.figure.layout.yaxis.range[1]
    assert smooth.max() <= high < 30  # the average hides them: only the raw curve leaves the axis
    marks = named(chart.figure, "above")
    assert ("▲ 3\u00a0later points above the axis" in chart.caption) is bool(count)
    if count:
        assert sorted(marks[0].x) == [620, 810]  # one for each stretch, at its highest point
        assert "31.0000" in marks[0].text[0] + marks[0].text[1]
    else:
        assert not marks


def test_a_short_run_is_seen_beside_a_long_one_that_is_lower() -> None:
    long, short = frame(20_000), frame(10)
    for main in (False, True):
        curves = [Curve("long", 0, long, main=not main), Curve("short", 1, short, main=main)]
        figure = loss_chart(LIGHT, curves, [], LossOptions(weight=0.5)).figure
        shown = ema(short["loss/train"].to_numpy(), 0.5) <= figure.layout.yaxis.range[1]
        assert shown[-5:].all()


# ---------------------------------------------------------------- logarithmic axes
def test_a_logarithmic_x_axis_begins_at_the_first_point_and_events_lie_right() -> None:
    event = [{"kind": "checkpoint", "step": 500}, {"kind": "checkpoint", "step": 0}, {"kind": "health", "step": 300}]
    figure = loss_chart(LIGHT, [Curve("a", 0, frame(), main=True)], event, LossOptions(log_x=True)).figure
    low, high = figure.layout.xaxis.range
    assert figure.layout.xaxis.type == "log"
    assert 0.9 < low < 1.0  # 10 is the first step
    assert high == pytest.approx(3.0, abs=0.01)
    assert all(10 <= tick <= 1010 for tick in figure.layout.xaxis.tickvals)
    assert list(named(figure, "saved")[0].x) == [500, 10]  # what was before the first line lies at its edge
    label = next(a for a in figure.layout.annotations if a.text.endswith(" a"))
    assert label.x == pytest.approx(3.0)  # annotations take the exponent, traces the value
    assert named(figure, "a")[0].x[0] == 10


def test_a_logarithmic_axis_keeps_the_beginning_and_all_extremes() -> None:
    x = np.arange(1.0, 100_001.0)
    y = np.random.default_rng(0).normal(size=len(x))
    few, values = thin(x, y, log_x=True)
    assert len(few) <= 1.05 * MAX_POINTS
    assert (values.min(), values.max()) == (y.min(), y.max())
    assert (np.diff(few) > 0).all()
    assert (few <= 100).sum() > 3 * (thin(x, y)[0] <= 100).sum()


# ---------------------------------------------------------------- at an equal place
@pytest.mark.parametrize("axis", ["Step", "Tokens", "FLOPs", "Time"])
def test_runs_are_compared_where_both_have_come_as_far(axis: str) -> None:
    main, other = frame(50, noise=0), frame(100, noise=0)
    other["flops"] *= 2
    found = read_out(main, other, axis, 0.0)
    assert found is not None
    assert found.validation
    assert found.at == {"Step": 500, "Tokens": 64_000, "FLOPs": 5e11, "Time": 25}[axis]
    expected = 0.0
    if axis == "FLOPs":  # the other run is at step 250 there, between its evaluations at 200 and 300
        val = other.dropna().set_index("step")["loss/val"]
        expected = (val[200] + val[300]) / 2 - val[500]
    assert found.difference == pytest.approx(expected)


def test_without_validation_the_training_losses_are_compared_and_without_a_common_place_none() -> None:
    main, other = (frame(20, seed=i).drop(columns="loss/val") for i in (0, 1))
    found = read_out(main, other, "Step", 0.9)
    assert found is not None
    assert not found.validation
    a, b = (ema(one["loss/train"].to_numpy(), 0.9)[-1] for one in (main, other))
    assert found.difference == pytest.approx(b - a)
    assert read_out(main, pd.DataFrame({"step": []}), "Step", 0.9) is None
    assert read_out(main.iloc[:5], main.iloc[10:], "Step", 0.9) is None
    assert [place(120, axis) for axis in ("Step", "FLOPs", "Time")] == ["step 120", "1.2e2 FLOPs", "2\u00a0m"]
