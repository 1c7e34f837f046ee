"""Train: the run of the address, its figures and curves, Stop and Resume, and every way a run can look broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import files
from dgsgpt.metrics import MetricsWriter
from dgsgpt.supervise import PAUSE_FILE, SAVE_FILE
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.run_factory import config, log_steps, make_run, write_status


def live_charts(app: AppTest) -> list[str]:
    """What was handed to live charts, as JSON."""
    components = [c.proto for c in app.get("bidi_component")]
    return [proto.json for proto in components if proto.component_name == "dgsgpt_live_chart"]


def figures(app: AppTest) -> dict[str, dict[str, Any]]:
    """The figures handed to live charts, by what the chart shows."""
    told = [json.loads(data) for data in live_charts(app)]
    return {one["alt"]: json.loads(one["figure"]) for one in told}


def loss_figure(app: AppTest) -> dict[str, Any]:
    """The large one."""
    (figure,) = [figure for alt, figure in figures(app).items() if alt.startswith("Training loss of")]
    return figure


def names(app: AppTest) -> list[str]:
    return [trace.get("name") for trace in loss_figure(app)["data"]]


def small_charts(app: AppTest) -> int:
    return len(live_charts(app)) - 1


def test_without_runs_one_button_and_one_command(open_page: OpenPage) -> None:
    app = open_page("train")
    assert labels(app) == ["Start the demo"]
    assert [c.value for c in app.code] == ["dgsgpt train configs/demo.yaml"]


def test_live_run_shows_progress_figures_and_curves(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "now", "running", 600, checkpoints=(400,))
    app = open_page("train")
    shown = html_of(app)
    for part in (
        "Running",
        "now",
        "60.0\u00a0%",
        "Train loss",
        "Validation loss",
        "Bits per byte",
        "tok/s",
        "Tokens seen",
    ):
        assert part in shown
    assert {"now", "raw", "validation", "saved", "samples", "health"} <= set(names(app))
    assert small_charts(app) == 4
    assert "Stop and save" in labels(app)
    assert not any(label.startswith("Resume") for label in labels(app))


def test_address_chooses_the_run(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "older", "finished")
    make_run(runs_dir, "newer", "finished")
    assert open_page("train").selectbox(key="train_run").value == "newer"
    app = open_page("train", run="older")
    assert app.selectbox(key="train_run").value == "older"
    app.selectbox(key="train_run").select("newer").run()
    assert app.query_params["run"] == "newer"
    assert "newer" in names(app)


def test_live_run_comes_first_without_an_address(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "live", "running", 100)
    make_run(runs_dir, "newer", "finished")
    assert open_page("train").selectbox(key="train_run").value == "live"


def test_unknown_run_in_the_address_is_said_as_text(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "known", "finished")
    shown = html_of(open_page("train", run="<b>nothing</b>"))
    assert "There is no run &lt;b&gt;nothing&lt;/b&gt;; this is known." in shown


def test_other_runs_are_laid_over(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "base", "finished")
    make_run(runs_dir, "wide", "finished")
    app = open_page("train", run="wide")
    assert "base" not in names(app)
    app.multiselect(key="train_others").select("base").run()
    assert {"base", "wide"} <= set(names(app))
    assert "2 of 2" in html_of(app)
    app.selectbox(key="train_run").select("base").run()  # the selected run cannot lie over itself
    assert app.multiselect(key="train_others").value == []


@pytest.mark.parametrize(
    ("axis", "last"), [("Step", 600), ("Tokens", 600 * 128), ("FLOPs", 600 * 128 * 6e5), ("Time", 30)]
)
def test_axis_changes_what_the_curve_lies_on(open_page: OpenPage, runs_dir: Path, axis: str, last: float) -> None:
    make_run(runs_dir, "now", "stopped", 600)
    app = open_page("train")
    app.segmented_control(key="train_axis").set_value(axis).run()
    assert loss_figure(app)["layout"]["xaxis"]["range"] == [0, pytest.approx(last, rel=0.01)]


def test_toolbar_switches_raw_log_and_smoothing(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "now", "stopped", 600)
    app = open_page("train")
    app.toggle(key="train_raw").set_value(False).run()
    assert "raw" not in names(app)
    app.toggle(key="train_logy").set_value(True).run()
    assert loss_figure(app)["layout"]["yaxis"]["type"] == "log"
    app.selectbox(key="train_smooth").select(0.5).run()
    assert "EMA 0.5" in html_of(app)


def test_growing_metrics_are_picked_up(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "running", 300)
    app = open_page("train")
    before = html_of(app)
    log_steps(run, 310, 500)
    write_status(run, "running", 500)
    app.run()
    assert "30.0\u00a0%" in before
    assert "50.0\u00a0%" in html_of(app)
    assert "50\u00a0points" in html_of(app)


def test_nothing_new_gives_the_same_figure(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "now", "running", 300)
    app = open_page("train")
    before = live_charts(app)
    app.run()
    assert len(before) == 5
    assert live_charts(app) == before


def test_stop_is_asked_once_and_then_greyed(
    open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(runs_dir, "now", "running", 300)
    asked = []
    monkeypatch.setattr(
        "dgsgpt.ui.run_cards.stop_run", lambda one: (asked.append(one), write_status(run, "stopping", 300))
    )
    app = open_page("train")
    button(app, "Stop and save").click().run()
    assert asked == [run]
    assert button(app, "Stopping…").disabled


def test_a_running_run_is_paused_and_continued(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "running", 300)
    app = open_page("train")
    button(app, "Pause").click().run()
    assert (run.path / PAUSE_FILE).exists()
    assert {"Continue", "Stop and save"} <= set(labels(app))
    write_status(run, "running", 300, paused=True, message="paused after step 300")
    app.run()
    shown = html_of(app)
    assert "Paused" in shown
    assert "paused after step 300" in shown
    assert " left, ends" not in shown
    assert "Save now" not in labels(app)
    button(app, "Continue").click().run()
    assert not (run.path / PAUSE_FILE).exists()


def test_a_checkpoint_is_asked_for_once(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "running", 300)
    app = open_page("train")
    button(app, "Save now").click().run()
    assert (run.path / SAVE_FILE).exists()
    assert button(app, "Saving…").disabled
    (run.path / SAVE_FILE).unlink()  # the trainer has taken it up
    app.run()
    assert not button(app, "Save now").disabled


@pytest.mark.parametrize("state", ["starting", "stopping", "finished", "failed"])
def test_only_a_running_run_can_be_paused_or_saved(open_page: OpenPage, runs_dir: Path, state: str) -> None:
    make_run(runs_dir, "now", state, 300, status={"error": "x"} if state == "failed" else {})
    assert not {"Pause", "Continue", "Save now"} & set(labels(open_page("train")))


def test_why_a_run_ended_early_is_told(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "done", "finished", 300, status={"message": "finished: no better loss in 5 validations"})
    assert "no better loss in 5 validations" in html_of(open_page("train"))


def test_what_auto_chose_is_told_with_its_reasons(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "running", 300, config=config(optimizer="muon", schedule={"kind": "wsd"}))
    assert "auto: settled when the run begins" in html_of(open_page("train"))
    settled = {"precision": "bf16", "compile": "off", "micro_batch_size": 4, "grad_accum_steps": 1, "why": ["<b>quick"]}
    files.write_json(run.path / "run.json", {**run.facts, "settled": settled})
    shown = html_of(open_page("train"))
    for part in ("chosen by auto", "&lt;b&gt;quick", "Muon for matrices, AdamW for the rest", "Update groups", "WSD"):
        assert part in shown


@pytest.mark.parametrize("state", ["stopped", "failed", "lost"])
def test_ended_run_can_be_resumed_from_its_checkpoint(
    open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    run = make_run(runs_dir, "ended", "running" if state == "lost" else state, 600, checkpoints=(400,))
    (run.path / "proc.json").unlink(missing_ok=True)
    resumed = []
    monkeypatch.setattr("dgsgpt.ui.run_cards.resume_run", resumed.append)
    app = open_page("train")
    button(app, "Resume from step 400").click().run()
    assert resumed == [run]


def test_finished_run_has_neither_stop_nor_resume(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "done", "finished", checkpoints=(1000,))
    app = open_page("train")
    assert not [label for label in labels(app) if label.startswith(("Stop", "Resume", "Start"))]
    assert "100.0\u00a0%" in html_of(app)


def test_failed_run_shows_cause_and_log_as_text(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "broken", "failed", 20, status={"error": "out of memory <script>"})
    (run.path / "train.log").write_text("RuntimeError: ![x](http://elsewhere/x.png)\n", encoding="utf-8")
    app = open_page("train")
    app.button(key="train_log_button").click().run()
    shown = html_of(app)
    assert "out of memory &lt;script&gt;" in shown
    assert "Nothing was saved: it starts again." in shown
    assert '<b style="font-weight:600">Last error</b> RuntimeError: ![x](http://elsewhere/x.png)' in shown
    assert [c.value for c in app.code if "![x]" in c.value] == ["RuntimeError: ![x](http://elsewhere/x.png)"] * 2
    assert "last error: RuntimeError: ![x](http://elsewhere/x.png)" in shown
    assert "Start again" in labels(app)


def test_samples_are_text(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "stopped", 300)
    MetricsWriter(run.path).event("sample", 300, prompt="It was", text=" <img src=http://elsewhere/x.png>", seed=1)
    shown = html_of(open_page("train"))
    assert " &lt;img src=http://elsewhere/x.png&gt;" in shown
    assert "<img src=http" not in shown


def test_mixture_of_experts_shows_its_load(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "moe", "running", 300, config=config(moe=True))
    app = open_page("train")
    shown = html_of(app)
    assert "Expert load" in shown
    assert "max 40.0\u00a0%" in shown
    (map_,) = [figure["data"][0] for alt, figure in figures(app).items() if "each expert" in alt]
    assert map_["type"] == "heatmap"
    app.selectbox(key="train_layer").select(0).run()
    assert "max 30.0\u00a0%" in html_of(app)
    assert "Router entropy" in shown
    assert "Tokens dropped" in shown


@pytest.mark.parametrize("state", ["queued", "starting"])
def test_run_without_metrics_yet_is_whole(open_page: OpenPage, runs_dir: Path, state: str) -> None:
    run = make_run(runs_dir, "fresh", state, 0, status={"message": "preparing data, 40 %", "eta_s": None})
    (run.path / "metrics.jsonl").unlink(missing_ok=True)
    (run.path / "train.log").unlink()
    app = open_page("train")
    shown = html_of(app)
    assert "The first line of metrics has not arrived yet." in shown
    assert ("preparing data, 40 %" in shown) is (state == "starting")
    assert ("Start" in labels(app)) is (state == "queued")
    assert "nothing printed yet" in shown


def test_damaged_config_is_explained(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "damaged", "finished")
    (run.path / "config.yaml").write_text("model: {n_layers: 3}", encoding="utf-8")
    app = open_page("train")
    assert "n_layers" in html_of(app)
    assert not live_charts(app)
