"""Train with several runs, clicks on the chart, a damaged run, and an address that carries all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dgsgpt import files
from dgsgpt.checkpoint import CheckpointInfo
from dgsgpt.metrics import MetricsWriter
from dgsgpt.runs import Run
from dgsgpt.ui import train_moment, train_panels
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.pages.test_train import figures, loss_figure, names
from tests.run_factory import config, make_run


def seeds(root: Path, *lasts: int) -> list[Run]:
    """Runs that differ in the seed only, logged up to these steps, and one of another kind."""
    runs = [make_run(root, f"same-s{i}", "finished", last, config=config(seed=i)) for i, last in enumerate(lasts)]
    return [*runs, make_run(root, "other", "finished", 400, config=config(lr=2e-3, seed=7))]


def test_other_seeds_are_added_at_once_and_drawn_as_a_band(open_page: OpenPage, runs_dir: Path) -> None:
    seeds(runs_dir, 600, 600, 600)
    app = open_page("train", run="same-s1")
    button(app, "Add its 2\u00a0other seeds").click().run()
    assert set(app.multiselect(key="train_others").value) == {"same-s0", "same-s2"}
    assert {"all seeds", "lowest", "highest", "validation"} <= set(names(app))
    assert "same-s1" not in names(app)
    assert app.query_params["by"] == "seed"
    assert button(app, "No other seed of it").disabled
    app.selectbox(key="train_group").select("").run()
    assert {"same-s0", "same-s1", "same-s2", "raw"} <= set(names(app))


def test_runs_are_grouped_by_a_setting_and_compared_at_an_equal_place(open_page: OpenPage, runs_dir: Path) -> None:
    seeds(runs_dir, 600, 600)
    app = open_page("train", **{"run": "same-s0", "with": "same-s1,other,nobody", "by": "train.lr", "x": "tokens"})
    shown = html_of(app)
    assert "The address also names runs that are not here: nobody" in shown
    assert {"lr 0.001", "lr 0.002"} <= set(names(app))
    texts = [a["text"] for a in loss_figure(app)["layout"]["annotations"]]
    assert [t for t in texts if "n=2" in t]
    assert [t for t in texts if "n=1" in t]
    assert "against same-s0 at equal tokens" in shown
    assert loss_figure(app)["layout"]["xaxis"]["range"][1] == pytest.approx(600 * 128, rel=0.01)


def test_the_address_carries_axes_and_runs_and_a_reload_keeps_them(open_page: OpenPage, runs_dir: Path) -> None:
    seeds(runs_dir, 300)
    app = open_page("train", run="same-s0")
    assert "with" not in app.query_params
    app.multiselect(key="train_others").select("other").run()
    app.toggle(key="train_logx").set_value(True).run()
    app.selectbox(key="train_smooth").select(0.95).run()
    app.segmented_control(key="train_axis").set_value("FLOPs").run()
    told = {k: app.query_params[k] for k in ("run", "with", "logx", "ema", "x")}
    assert told == {"run": "same-s0", "with": "other", "logx": "1", "ema": "0.95", "x": "flops"}
    again = open_page("train", **told)
    assert loss_figure(again)["layout"]["xaxis"]["type"] == "log"
    assert "other" in names(again)
    assert "EMA 0.95" in html_of(again)
    nonsense = open_page("train", run="same-s0", x="parsecs", ema="much", logx="?", by="train.nothing")
    assert loss_figure(nonsense)["layout"]["xaxis"]["range"][0] == 0


def test_a_clicked_step_shows_its_sample_and_checkpoint(
    open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(runs_dir, "now", "finished", 600, checkpoints=(200, 400))
    saved = [CheckpointInfo(path, run.id, int(path.name[5:])) for path in reversed(run.checkpoints())]
    monkeypatch.setattr(train_moment, "list_checkpoints", lambda one: saved)
    app = open_page("train")
    assert "Fork from here" not in labels(app)
    app = open_page("train", run="now", at="250")
    shown = html_of(app)
    for part in (
        "Step 250",
        "Sample of step 200, 50\u00a0steps earlier",
        "Checkpoint of step 200",
        "a truth of step 200",
    ):
        assert part in shown
    assert {"Open in Playground", "Compare with the newest", "Fork from here", "Checkpoint page"} <= set(labels(app))
    button(app, "Close").click().run()
    assert "Fork from here" not in labels(app)
    assert "at" not in app.query_params
    nonsense = open_page("train", run="now", at="-3 or so")
    assert "Fork from here" not in labels(nonsense)


def test_a_click_is_told_as_a_step_of_the_axis_it_was_seen_on(
    open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(runs_dir, "now", "finished", 600)
    told = {}
    drawn = train_panels.live

    def live(*args: object, **options: object) -> None:
        told.update(options) if "on_click" in options else None
        drawn(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(train_panels, "live", live)
    chosen: list[int] = []
    monkeypatch.setattr(train_panels.train_moment, "choose", lambda run, step: chosen.append(step))
    app = open_page("train")
    app.segmented_control(key="train_axis").set_value("Tokens").run()
    told["on_click"](128 * 252.0, "now Tokens False False")  # type: ignore[operator]
    told["on_click"](128 * 252.0, "now Step False False")  # type: ignore[operator] # was on its way when the axis changed
    told["on_click"]("much", "now Tokens False False")  # type: ignore[operator]
    assert chosen == [250]


@pytest.mark.parametrize("damage", ["metrics", "status", "events", "proc"])
def test_a_damaged_run_is_still_shown(open_page: OpenPage, runs_dir: Path, damage: str) -> None:
    run = make_run(runs_dir, "hurt", "running", 300, checkpoints=(200,))
    if damage == "metrics":
        data = (run.path / "metrics.jsonl").read_bytes()
        (run.path / "metrics.jsonl").write_bytes(data[:2000] + b"\xff\x00{{{\n" + b"[1]\n" + data[4000:-30])
    elif damage == "status":
        (run.path / "status.json").unlink()
    elif damage == "events":
        (run.path / "events.jsonl").write_bytes(b'\x00\n{"step": 1}\n{"kind": "sample", "step": 5}\n{"kind": "heal')
    else:
        (run.path / "proc.json").write_text("[", encoding="utf-8")
    app = open_page("train")
    shown = html_of(app)
    assert "hurt" in shown
    assert ("damaged line" in shown) is (damage == "metrics")
    assert ("Lost" in shown) is (damage == "proc")
    assert ("Queued" in shown) is (damage == "status")
    assert "hurt" in names(app)


def test_steps_that_were_not_finite_are_marked_and_told(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "running", 300)
    MetricsWriter(run.path).log(310, {"time_s": 15.5, "tokens": 39680, "loss/train": float("nan"), "lr": 1e-3})
    MetricsWriter(run.path).event("health", 310, name="nonfinite", severity="error", message="the loss is not finite")
    app = open_page("train")
    assert "not finite" in names(app)
    assert "✕ 1\u00a0step without a finite loss" in html_of(app)
    assert [b.label for b in app.button if b.key == "train_alert_stop"] == ["Stop and save"]


def test_a_new_finding_is_a_toast_once(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "running", 300)
    writer = MetricsWriter(run.path)
    writer.event("health", 100, message="an old one")
    app = open_page("train")
    assert not app.toast
    writer.event("health", 290, severity="error", message="a new *one*")
    app.run()
    assert [t.value for t in app.toast] == ["Step 290: A new \\*one\\*"]
    app.run()
    assert not app.toast


def test_samples_can_be_scrubbed_and_compared_and_follow_the_newest(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "now", "running", 1000)
    app = open_page("train")
    assert app.select_slider(key="train_sample").value == 1000
    MetricsWriter(run.path).event("sample", 1010, prompt="It was", text=" a truth of step 1010", seed=1)
    app.run()
    assert app.select_slider(key="train_sample").value == 1010
    app.select_slider(key="train_sample").set_value(600).run()
    MetricsWriter(run.path).event("sample", 1020, prompt="It was", text=" a truth of step 1020", seed=1)
    app.run()
    assert app.select_slider(key="train_sample").value == 600
    app.segmented_control(key="train_sample_how").set_value("Changes").run()
    assert "line-through" in html_of(app)
    MetricsWriter(run.path).event("sample", 1020, prompt="<b>She", text=" was", seed=1)
    app.run()
    assert len(app.selectbox(key="train_prompt").options) == 2
    assert "&lt;b&gt;She" in html_of(app)


def test_the_menu_offers_fork_clone_compare_data_and_report(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "now", "finished", 300)
    app = open_page("train")
    assert button(app, "Fork from its newest checkpoint").disabled
    assert button(app, "Compare with the runs laid over").disabled
    assert {b.proto.label for b in app.get("download_button")} == {
        "Raw data of 1\u00a0run (CSV)",
        "Report (one HTML file)",
    }
    assert "dgsgpt metrics now --csv now.csv\ndgsgpt report now" in [c.value for c in app.code]
    button(app, "Picture of the chart (PNG)").click().run()
    assert app.session_state["train_picture"] == 1


def test_a_step_is_looked_at_without_a_mouse(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "now", "finished", 1000, checkpoints=(500, 1000))
    app = open_page("train")
    app.number_input(key="train_at_now").set_value(620).run()
    shown = html_of(app)
    assert "Sample of step 600" in shown
    assert "Checkpoint of step 500" in shown
    assert app.query_params["at"] in ("620", ["620"])
    app.number_input(key="train_at_now").set_value(None).run()
    assert "Sample of step 600" not in html_of(app)


def test_a_run_of_experts_that_logged_no_loads_shows_the_busiest(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "moe", "finished", 300, config=config(moe=True))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if not k.startswith(("moe/load", "moe/entropy"))} for row in rows]
    files.write_atomic(run.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept).encode())
    app = open_page("train")
    assert "busiest expert over steps, in percent" in figures(app)
    assert "This run did not log it." in html_of(app)
