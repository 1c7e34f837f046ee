"""The Configure page for runs that begin with a checkpoint: going on from it, or fine-tuning its weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import branch
from dgsgpt import checkpoint as ck
from dgsgpt.runs import Run, list_runs
from dgsgpt.ui.app import ROUTER, page_file
from tests import checkpoint_factory, run_factory
from tests.pages.configure_page import bench, draft_value, machine, set_to, settled, shown, start_button, widget

__all__ = ["machine"]


@pytest.fixture(autouse=True)
def _nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgsgpt.ui.launchpad.start_run", lambda run: None)


@pytest.fixture
def origin(runs_dir: Path) -> Run:
    run = run_factory.make_run(runs_dir, "old", step=400)
    checkpoint_factory.save(run, 400)
    return run


@pytest.fixture
def lower_case(origin: Run) -> Run:
    """Its newest checkpoint knows no capitals."""
    checkpoint_factory.save(origin, 500, characters="".join(sorted(set("abcdefghijklmnopqrstuvwxyz ,.\n"))))
    return origin


def open_with(base: str, how: str) -> AppTest:
    at = AppTest.from_file(str(ROUTER), default_timeout=60).run()
    at.query_params["base"], at.query_params["how"] = base, how
    return settled(at.switch_page(str(page_file("configure"))).run())


def commands(at: AppTest) -> str:
    return "\n".join(code.value for code in at.code)


def test_fine_tuning_takes_network_and_tokenizer_of_the_checkpoint(
    lower_case: Run, runs_dir: Path, tmp_path: Path
) -> None:
    at = open_with("old@500", "fine-tune")
    assert "Begins with old, step 500" in shown(at)
    assert draft_value(at, "model.n_embd") == 32
    assert draft_value(at, "data.tokenizer.kind") == "file"
    text = tmp_path / "own.txt"
    text.write_text("a quiet day, and no one came. " * 400, encoding="utf-8")
    bench(at).change({**bench(at).draft, "data": {**bench(at).draft["data"], "corpus": str(text)}})
    settled(at.run())
    assert "--from old@500" in commands(at)
    settled(start_button(at).click().run())
    made = next(run for run in list_runs(runs_dir) if run.id != "old")
    assert made.facts["parent"] == {"run": "old", "step": 500, "kind": "fine-tune"}
    assert branch.begins_with(made) is not None
    assert made.config.data.corpus == str(text)


def test_a_text_with_characters_the_model_never_saw_is_refused_beside_the_field(lower_case: Run) -> None:
    at = open_with("old@500", "fine-tune")  # Austen has capitals, the checkpoint's tokenizer has none
    assert "does not know" in shown(at)
    assert start_button(at).disabled


def test_going_on_needs_more_steps_and_begins_at_its_step(origin: Run, runs_dir: Path) -> None:
    at = open_with("old@400", "fork")
    assert draft_value(at, "train.steps") == 1000
    set_to(at, "set_train-steps", 300)
    assert "leaves nothing to do after step 400" in shown(at)
    assert start_button(at).disabled
    settled(next(b for b in at.button if "Use 600" in b.label).click().run())
    assert draft_value(at, "train.steps") == 600
    assert "dgsgpt fork old@400" in commands(at)
    assert "--set train.steps=600" in commands(at)


def test_a_fork_is_made_with_its_checkpoint(origin: Run, runs_dir: Path) -> None:
    at = open_with("old@400", "fork")
    settled(start_button(at).click().run())
    made = next(run for run in list_runs(runs_dir) if run.id != "old")
    assert made.facts["parent"] == {"run": "old", "step": 400, "kind": "fork"}
    assert [p.name for p in made.checkpoints()] == ["step_00000400"]


def test_another_network_is_a_problem_that_one_click_mends(origin: Run) -> None:
    at = open_with("old@400", "fork")
    set_to(at, "set_model-n_layer", 5)
    assert "are of another network" in shown(at)
    assert start_button(at).disabled
    settled(next(b for b in at.button if "Put back" in b.label).click().run())
    assert draft_value(at, "model.n_layer") == 2
    assert not start_button(at).disabled


def test_an_imported_model_has_nothing_to_go_on_with(origin: Run) -> None:
    checkpoint_factory.save(origin, 500, imported={"family": "llama", "warnings": []})
    at = open_with("old@500", "fork")
    assert bench(at).origin is not None
    assert bench(at).origin.how == "fine-tune"
    assert widget(at, "origin_how_fine-tune").disabled


def test_from_scratch_again(origin: Run) -> None:
    at = open_with("old@400", "fine-tune")
    settled(at.button(key="origin_off").click().run())
    assert bench(at).origin is None
    assert draft_value(at, "data.tokenizer.kind") == "bpe"
    assert "Begins with" not in shown(at)
    settled(at.button(key="undo").click().run())
    assert bench(at).origin is not None


@pytest.mark.parametrize("ref", ["nobody@1", "old@7", "../x"])
def test_a_link_to_no_checkpoint_says_so(origin: Run, ref: str) -> None:
    assert "no checkpoint" in shown(open_with(ref, "fork"))


def test_a_damaged_checkpoint_is_named(origin: Run) -> None:
    (origin.checkpoints()[0] / ck.MODEL).write_bytes(b"short")
    at = open_with("old@400", "fork")
    assert "no checkpoint" in shown(at) or "damaged" in shown(at)
    assert bench(at).origin is None


def test_switching_how_it_begins(lower_case: Run) -> None:
    at = open_with("old@500", "fine-tune")
    set_to(at, "origin_how_fine-tune", "fork")
    assert bench(at).origin is not None
    assert bench(at).origin.how == "fork"
    assert draft_value(at, "data.tokenizer.kind") == "char"


def test_another_optimizer_cannot_go_on(origin: Run) -> None:
    at = open_with("old@400", "fork")
    bench(at).change({**bench(at).draft, "train": {**bench(at).draft["train"], "optimizer": "muon"}})
    settled(at.run())
    assert "needs the optimizer as it was" in shown(at)
    assert start_button(at).disabled
