"""Runs: the table of all, what can be done with those picked, sets compared, the queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import run_queue
from dgsgpt.annotations import annotate, read
from dgsgpt.runs import Run, create_run
from dgsgpt.trash import list_trash
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.run_factory import config, make_run


@pytest.fixture(autouse=True)
def _no_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_queue, "ensure_runner", lambda root: False)


@pytest.fixture
def some(runs_dir: Path) -> list[Run]:
    """A dense and a sparse run that finished, one that crashed, one that was stopped; the last is the newest."""
    made = [
        make_run(runs_dir, "austen-dense", config=config(lr=1e-3), checkpoints=(1000,)),
        make_run(runs_dir, "austen-moe", config=config(moe=True, lr=3e-4)),
        make_run(runs_dir, "crashed", "failed", 340, status={"error": "killed by SIGKILL"}),
        make_run(runs_dir, "halted", "stopped", 600),
    ]
    annotate(made[1], star=True, add_tags=["paper"], note="for the talk", name="Sparse one")
    return made


def table(app: AppTest, column: str) -> list[object]:
    return list(app.dataframe[0].value[column])


def more(app: AppTest, choice: str) -> AppTest:
    return app.menu_button(key="rn_more").click(choice).run()


def chart(app: AppTest) -> dict:
    return dict(json.loads(app.get("plotly_chart")[0].proto.spec))


def test_without_runs_one_sentence_one_button_one_command(open_page: OpenPage) -> None:
    app = open_page("runs")
    assert labels(app) == ["Start the demo"]
    assert [c.value for c in app.code] == ["dgsgpt train configs/demo.yaml"]


@pytest.mark.usefixtures("some")
def test_the_table_tells_state_figures_and_what_differs(open_page: OpenPage) -> None:
    app = open_page("runs")
    assert table(app, "run") == ["halted", "crashed", "Sparse one", "austen-dense"]
    assert table(app, "state") == ["■ Stopped", "✕ Failed", "✓ Finished", "✓ Finished"]
    assert table(app, "star") == ["☆", "☆", "★", "☆"]
    assert table(app, "train.lr") == ["0.001", "0.001", "3e-4", "0.001"]
    assert table(app, "model.moe.n_expert") == ["–", "–", "4", "–"]
    assert "train.steps" not in app.dataframe[0].value
    assert "4 runs, none live" in html_of(app).replace("\u00a0", " ").replace("\u202f", " ")


@pytest.mark.usefixtures("some")
@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("moe", ["Sparse one"]),
        ("paper", ["Sparse one"]),
        ("talk", ["Sparse one"]),
        ("failed", ["crashed"]),
        ("lr=1e-3 austen", ["austen-dense"]),
        ("moe=off", ["halted", "crashed", "austen-dense"]),
        ("moe=on", ["Sparse one"]),
    ],
)
def test_a_search_finds_runs_by_words_and_settings(open_page: OpenPage, query: str, found: list[str]) -> None:
    app = open_page("runs")
    app.text_input(key="rn_query").set_value(query).run()
    assert table(app, "run") == found


@pytest.mark.usefixtures("some")
def test_a_search_for_no_setting_names_the_nearest(open_page: OpenPage) -> None:
    app = open_page("runs")
    app.text_input(key="rn_query").set_value("n_layr=2").run()
    assert "n_layr is not a setting" in html_of(app)
    assert not app.dataframe


@pytest.mark.usefixtures("some")
def test_one_that_failed_says_why_and_can_go_on(open_page: OpenPage) -> None:
    app = open_page("runs", run="crashed")
    assert "killed by SIGKILL" in html_of(app)
    assert "Start again" in labels(app)
    assert app.query_params["run"] in ("crashed", ["crashed"])


def test_any_set_is_compared_by_curves_and_settings(open_page: OpenPage, some: list[Run]) -> None:
    app = open_page("runs", run=["austen-moe", "austen-dense"])  # type: ignore[arg-type]
    assert [trace["name"] for trace in chart(app)["data"]] == ["Sparse one", "austen-dense"]
    shown = html_of(app)
    assert "Settings that differ" in shown
    assert "Learning rate" in shown
    assert "0.001" in shown
    app.selectbox(key="rn_metric").set_value("loss/train").run()
    assert len(chart(app)["data"]) == 2
    app.segmented_control(key="rn_axis").set_value("Tokens").run()
    (end,) = {max(trace["x"]) for trace in chart(app)["data"] if isinstance(trace["x"], list)} or {1000 * 128}
    assert end == 1000 * 128


def test_a_star_of_all_picked(open_page: OpenPage, some: list[Run]) -> None:
    app = open_page("runs", run=["austen-dense", "austen-moe"])  # type: ignore[arg-type]
    button(app, "Star").click().run()
    assert [read(run).run.star for run in some] == [True, True, False, False]
    button(app, "Remove star").click().run()
    assert not any(read(run).run.star for run in some)


def test_a_name_and_tags_are_written_in_the_dialog(open_page: OpenPage, some: list[Run]) -> None:
    app = more(open_page("runs", run="halted"), "Name, tags, note")
    app.text_input(key="ck_say_name_halted_run").set_value("Old one").run()
    assert read(some[3]).run.name == "Old one"
    app.text_input(key="ck_say_name_halted_run").set_value("x" * 81).run()
    assert read(some[3]).run.name == "Old one"
    assert "80 are allowed" in html_of(app) + "".join(e.proto.body for e in app.get("html"))


def test_an_archived_run_leaves_the_list_and_comes_back(open_page: OpenPage, some: list[Run]) -> None:
    app = more(open_page("runs", run="halted"), "Archive")
    assert read(some[3]).run.archived
    assert "halted" not in table(app, "run")
    app.pills(key="rn_filter").set_value("archived").run()
    assert table(app, "run") == ["halted"]
    button(app, "Undo").click().run()
    assert not read(some[3]).run.archived
    assert "halted" in table(app, "run")


def test_what_is_deleted_can_be_undone(open_page: OpenPage, some: list[Run], runs_dir: Path) -> None:
    app = more(open_page("runs", run=["halted", "crashed"]), "Delete 2")  # type: ignore[arg-type]
    button(app, "Move to the trash").click().run()
    assert table(app, "run") == ["Sparse one", "austen-dense"]
    assert len(list_trash(runs_dir)) == 2
    button(app, "Undo").click().run()
    assert table(app, "run") == ["halted", "crashed", "Sparse one", "austen-dense"]


def test_a_live_run_is_not_deleted(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "live", "running", 100)
    app = more(open_page("runs", run="live"), "Delete")
    button(app, "Move to the trash").click().run()
    assert run.path.is_dir()
    assert "stop" in "".join(e.proto.body for e in app.get("html"))


def test_the_queue_is_shown_moved_and_held(open_page: OpenPage, runs_dir: Path) -> None:
    for name in ("a", "b", "c"):
        run_queue.enqueue(create_run(runs_dir, config(), name))
    app = open_page("runs")
    assert sorted(map(str, table(app, "state"))) == ["◷ Queued 1", "◷ Queued 2", "◷ Queued 3"]
    app.button(key="rq_Later_a").click().run()
    assert run_queue.read_queue(runs_dir).ids == ("b", "a", "c")
    app.button(key="rq_remove_c").click().run()
    button(app, "Hold").click().run()
    queue = run_queue.read_queue(runs_dir)
    assert (queue.ids, queue.held) == (("b", "a"), True)
    assert "held: nothing is started" in html_of(app)
    button(app, "Release").click().run()
    assert not run_queue.read_queue(runs_dir).held


def test_those_that_may_are_put_into_the_queue(open_page: OpenPage, some: list[Run], runs_dir: Path) -> None:
    app = open_page("runs", run=["halted", "crashed"])  # type: ignore[arg-type]
    more(app, "Add to the queue")
    assert run_queue.read_queue(runs_dir).ids == ("halted", "crashed")
    finished = open_page("runs", run="austen-dense")
    assert "Add to the queue" not in list(finished.menu_button(key="rn_more").proto.options)


def test_a_run_with_a_damaged_config_is_listed(open_page: OpenPage, some: list[Run]) -> None:
    (some[0].path / "config.yaml").write_text("model: [", encoding="utf-8")
    app = open_page("runs", run=["austen-dense", "austen-moe"])  # type: ignore[arg-type]
    assert "austen-dense" in table(app, "run")
    assert "cannot be read" in html_of(app)


def test_names_and_notes_are_text(open_page: OpenPage, runs_dir: Path) -> None:
    run = make_run(runs_dir, "a")
    annotate(run, name="<img src=x onerror=alert(1)>", note="![x](http://127.0.0.1:9/x.png)")
    app = open_page("runs", run="a")
    assert "<img" not in "".join(e.proto.body for e in app.get("html"))
    assert table(app, "run") == ["<img src=x onerror=alert(1)>"]
