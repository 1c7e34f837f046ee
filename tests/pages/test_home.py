"""Home: the machine, what runs, how to begin, what ran."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from dgsgpt import files, run_queue
from dgsgpt.errors import RunError
from dgsgpt.runs import create_run, list_runs
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.run_factory import config, make_run, write_status


def test_without_runs_it_offers_the_demo(open_page: OpenPage) -> None:
    app = open_page("home")
    shown = html_of(app)
    assert "no runs yet" in shown
    assert labels(app).count("Start the demo") == 2
    assert [c.value for c in app.code] == ["dgsgpt train configs/demo.yaml"]
    assert "This machine" in shown
    assert "Profile by the rule" in shown


def test_demo_starts_once_and_leads_to_the_train_page(
    open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(root: Path) -> object:
        return make_run(root, "austen-demo", "running", 20)

    monkeypatch.setattr("dgsgpt.launch.start_demo", start)
    app = open_page("home")
    app.button(key="home_begin_demo").click().run()
    assert [run.id for run in list_runs(runs_dir)] == ["austen-demo"]
    assert "Stop and save" in labels(app)
    assert "Choose runs" in html_of(app) or app.selectbox(key="train_run").value == "austen-demo"


def test_live_run_is_shown_with_progress_and_stop(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "now", "running", 600)
    app = open_page("home")
    shown = html_of(app)
    assert "1 running, 1\u00a0run kept" in shown
    assert "60.0\u00a0%" in shown
    assert "Running" in shown
    assert {"Watch", "Stop and save"} <= set(labels(app))


def test_stop_asks_the_run_to_stop(open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(runs_dir, "now", "running", 600)
    asked = []
    monkeypatch.setattr(
        "dgsgpt.ui.run_cards.stop_run", lambda one: (asked.append(one), write_status(run, "stopped", 600))
    )
    app = open_page("home")
    button(app, "Stop and save").click().run()
    assert asked == [run]
    assert "Stop and save" not in labels(app)
    assert "Stopped" in html_of(app)


@pytest.mark.parametrize(("automatic", "said"), [(True, True), (False, False)])
def test_only_the_automatic_demo_is_announced(open_page: OpenPage, runs_dir: Path, automatic: bool, said: bool) -> None:
    make_run(runs_dir, "austen-demo", "running", 100, demo=automatic)
    assert ("Started by itself because there were no runs yet" in html_of(open_page("home"))) is said


def test_recent_runs_have_state_loss_and_the_right_action(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "done", "finished")
    make_run(runs_dir, "halted", "stopped", 400, checkpoints=(400,))
    make_run(runs_dir, "broken", "failed", 20, status={"error": "out of memory"})
    lost = make_run(runs_dir, "gone", "running", 300, checkpoints=(200,))
    (lost.path / "proc.json").unlink()
    app = open_page("home")
    shown = html_of(app)
    for word in ("Finished", "Stopped", "Failed", "Lost", "out of memory", "400 of 1\u202f000 steps"):
        assert word in shown
    keys = {b.key for b in app.button}
    assert {"home_open_done", "home_resume_halted", "home_open_broken", "home_resume_gone"} <= keys


def test_failure_of_a_button_is_told_once(open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: object) -> None:
        raise RunError("run 'halted' is already <running>; stop it first")

    make_run(runs_dir, "halted", "stopped", 400, checkpoints=(400,))
    monkeypatch.setattr("dgsgpt.ui.run_cards.resume_run", refuse)
    app = open_page("home")
    app.button(key="home_resume_halted").click().run()
    assert "already &lt;running&gt;; stop it first" in html_of(app)
    assert "stop it first" not in html_of(app.run())


def test_hostile_error_text_is_shown_as_text(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(
        runs_dir, "broken", "failed", 20, status={"error": "<img src=http://elsewhere/x.png>![x](http://elsewhere)"}
    )
    shown = html_of(open_page("home"))
    assert "<img src=http" not in shown
    assert "&lt;img src=http://elsewhere/x.png&gt;" in shown


def test_damaged_config_does_not_take_the_page_down(open_page: OpenPage, runs_dir: Path) -> None:
    make_run(runs_dir, "good", "finished")
    damaged = make_run(runs_dir, "damaged", "finished")
    (damaged.path / "config.yaml").write_text("model: {n_layer: [", encoding="utf-8")
    shown = html_of(open_page("home"))
    assert "its config cannot be read" in shown
    assert "good" in shown


def test_half_written_files_do_not_take_the_page_down(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "torn", "running", 300)
    (run.path / "status.json").write_text('{"state": "run', encoding="utf-8")
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as f:
        f.write('{"step": 310, "loss/tr')
    (run.path / "run.json").unlink()
    assert "torn" in html_of(open_page("home"))


def test_many_runs_are_shortened_and_counted(open_page: OpenPage, runs_dir: Path) -> None:
    for i in range(10):
        run = make_run(runs_dir, f"run{i}", "finished", 20)
        files.write_json(run.path / "run.json", {**run.facts, "created_at": 1e9 + i})
    app = open_page("home")
    assert "8 of 10" in html_of(app)
    assert sum(label == ":blue[Open]" for label in labels(app)) == 8
    assert "run9" in html_of(app)
    assert ">run0<" not in html_of(app)


def test_runs_that_wait_are_shown_and_the_queue_goes_on_by_itself(
    open_page: OpenPage, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Path] = []
    fake = SimpleNamespace(Popen=lambda command, **_: started.append(Path(command[3])), DEVNULL=None, STDOUT=None)
    monkeypatch.setattr(run_queue, "subprocess", fake)
    run_queue.enqueue(create_run(runs_dir, config(), "tonight"))
    started.clear()
    app = open_page("home")
    assert "tonight" in html_of(app)
    assert "Hold" in labels(app)
    assert started
    assert set(started) == {runs_dir}
