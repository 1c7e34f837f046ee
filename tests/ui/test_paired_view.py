"""What the card of a paired comparison shows, and which command gives the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dgsgpt.checkpoint import CheckpointInfo
from dgsgpt.runs import Run
from dgsgpt.ui import paired_view
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.comparison import Side
from dgsgpt.ui.paired_view import Estimate, Line
from dgsgpt.ui.theme import LIGHT
from tests.run_factory import make_run


@pytest.fixture
def sides(runs_dir: Path) -> list[Side]:
    run: Run = make_run(runs_dir, "one", step=20)
    paths = [run.path / "checkpoints" / f"step_{step:08d}" for step in (1, 2, 3)]
    return [
        Side(letter, Entry(CheckpointInfo(path, run.id, i), run), i)
        for i, (letter, path) in enumerate(zip("ABC", paths, strict=True))
    ]


def line(*gaps: Estimate | None, **more: Any) -> Line:
    return Line("Loss", (2.0, 2.5, 1.9), gaps, 4, "loss", **more)


BETTER, NOTHING = Estimate(-0.5, -0.6, -0.4), Estimate(0.1, -0.1, 0.3)


def test_a_difference_is_grey_without_arrow_when_its_interval_holds_zero() -> None:
    shown, unsure = (str(paired_view.gap_html(gap, 4)) for gap in (BETTER, NOTHING))
    assert LIGHT["good"] in shown
    assert "▼" in shown
    assert "95 % interval −0.6000 to −0.4000" in shown
    assert LIGHT["ink3"] in unsure
    assert "▲" not in unsure
    assert paired_view.gap_html(None, 4) == "–"


def test_worse_is_red() -> None:
    assert LIGHT["bad"] in str(paired_view.gap_html(Estimate(0.5, 0.4, 0.6), 4))


@pytest.mark.parametrize(
    ("verdict", "role"), [("A is better", "good"), ("B is better", "good"), ("no difference shown", "idle"),
                          ("identical", "idle")],
)  # fmt: skip
def test_verdicts_are_tinted(verdict: str, role: str) -> None:
    assert LIGHT[role + "bg"] in paired_view.verdict_tag(verdict)


def test_the_forest_has_a_dot_with_its_interval_for_each(sides: list[Side]) -> None:
    figure = paired_view.forest(LIGHT, [line(BETTER, NOTHING), line(None, BETTER)], sides)
    b, c = figure.data
    assert list(b.x) == [-0.5]
    assert list(c.x) == [0.1, -0.5]
    assert c.error_x.array == pytest.approx((0.2, 0.1))
    assert c.error_x.arrayminus == pytest.approx((0.2, 0.1))
    low, high = figure.layout.xaxis.range
    assert low < -0.6
    assert high > 0.3
    assert "0" in figure.layout.xaxis.ticktext
    assert list(b.text) == ["B"]


def test_the_forest_of_two_has_the_colour_of_a_and_no_letters(sides: list[Side]) -> None:
    (dots,) = paired_view.forest(LIGHT, [line(BETTER)], sides[:2]).data
    assert dots.marker.color == LIGHT.run(0)
    assert dots.mode == "markers"


def test_identical_models_have_a_forest_around_zero(sides: list[Side]) -> None:
    figure = paired_view.forest(LIGHT, [line(Estimate(0.0, 0.0, 0.0))], sides[:2])
    low, high = figure.layout.xaxis.range
    assert low < 0 < high


def test_the_command_is_one_that_a_shell_reads(sides: list[Side]) -> None:
    assert paired_view.command(sides[:2], None, False, 100) == "dgsgpt compare one@1 one@2 --max-tokens 100"
    assert "--corpus 'my text.txt' --max-tokens 5" in paired_view.command(sides, "my text.txt", False, 5)
    assert "--corpus plays --max-tokens 5" in paired_view.command(sides, "plays", False, 5)
    assert "--text FILE" in paired_view.command(sides, "plays", True, 5)
