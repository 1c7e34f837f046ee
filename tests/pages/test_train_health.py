"""Train: what went wrong in a run, on top of the page, in its card, on the loss chart and beside the learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from dgsgpt.format import lr
from dgsgpt.metrics import MetricsWriter
from dgsgpt.train.schedule import learning_rate
from dgsgpt.ui.theme import palette
from tests.pages.conftest import OpenPage, html_of
from tests.pages.test_train import figures, loss_figure
from tests.run_factory import make_run


def test_a_severe_finding_stands_on_top_and_is_marked_in_red(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "running", 300)
    writer = MetricsWriter(run.path)
    writer.event("health", 150, name="loss_spike", severity="warning", message="loss 4.2, usually 3.0")
    writer.event("health", 290, name="nonfinite", severity="error", message="loss is not finite")
    app = open_page("train")
    shown = html_of(app)
    assert shown.count("Loss is not finite") == 2
    assert shown.count("Loss 4.2, usually 3.0") == 1
    (row,) = [trace for trace in loss_figure(app)["data"] if trace.get("name") == "health"]
    assert row["marker"]["color"] == [palette()["warn"], palette()["bad"]]


@pytest.mark.parametrize(("scale", "note"), [(1.0, ">cosine<"), (0.5, "cosine, × 0.5 since it went back")])
def test_rates_lowered_by_going_back_are_drawn_and_told(
    open_page: OpenPage, runs_dir: Path, scale: float, note: str
) -> None:
    run = make_run(runs_dir, "now", "running", 300)
    planned = {step: learning_rate(step - 1, run.config.train) for step in (310, 320)}
    writer = MetricsWriter(run.path)
    for step, rate in planned.items():
        writer.log(step, {"loss/train": 2.4, "lr": scale * rate})
    app = open_page("train")
    shown = html_of(app)
    assert note in shown
    assert ("since it went back" in shown) == (scale < 1)
    assert f">{lr(scale * planned[320])}<" in shown
    (drawn,) = [figure["data"] for alt, figure in figures(app).items() if alt.startswith("Learning rate")]
    assert [trace["name"] for trace in drawn] == ["rate", "planned"]


def test_damaged_metric_lines_are_counted(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "stopped", 300)
    with (run.path / "metrics.jsonl").open("ab") as f:
        f.write(
            b'\x00\x00\xff\n{"step": "x"}\n{"step": 310, "loss/train": 2'
        )  # the torn last line may still be completed
    assert "2\u00a0damaged lines" in html_of(open_page("train"))


def test_health_events_are_listed_as_text(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "stopped", 300)
    MetricsWriter(run.path).event("health", 140, message="loss/train is not finite <b>")
    app = open_page("train")
    assert "loss/train is not finite &lt;b&gt;" in html_of(app)
    (row,) = [trace for trace in loss_figure(app)["data"] if trace.get("name") == "health"]
    assert "&lt;b&gt;" in row["text"][0]
