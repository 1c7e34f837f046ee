"""Beams and Batch below the playground's texts: what they find is what the core and the command find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt.checkpoint import load_checkpoint
from dgsgpt.generation import BeamSettings, generate, grow_beams
from dgsgpt.runs import Run
from dgsgpt.ui import batch_run
from tests.checkpoint_factory import flip_a_bit, save
from tests.pages.conftest import OpenPage, button, html_of
from tests.run_factory import make_run


@pytest.fixture
def run(runs_dir: Path) -> Run:
    """A run with a checkpoint that knows five characters."""
    made = make_run(runs_dir, "one", step=20)
    save(made, 20, characters="\n abc")
    return made


def look(open_page: OpenPage, panel: str, prompt: str = "ab") -> AppTest:
    app = open_page("playground", look=panel)
    return app.text_area(key="pg_prompt").set_value(prompt).run()


def search(app: AppTest, beams: int = 3, new: int = 6) -> AppTest:
    app.number_input(key="bm_n").set_value(beams)
    app.number_input(key="bm_new").set_value(new)
    return button(app, "Search").click().run()


# ---------------------------------------------------------------- beams
def test_a_search_finds_what_grow_beams_finds(open_page: OpenPage, run: Run) -> None:
    app = look(open_page, "Beams")
    app.number_input(key="bm_penalty").set_value(0.5)
    search(app)
    opened = load_checkpoint(run.path / "checkpoints" / "step_00000020")
    wanted = grow_beams(opened.model, opened.tokenizer, "ab", BeamSettings(3, 6, 0.5))
    found = app.session_state["bm_found"].result
    assert [(beam.text, beam.score) for beam in found.beams] == [(beam.text, beam.score) for beam in wanted.beams]
    shown = html_of(app)
    for beam in wanted.beams:
        assert f"score <b>{beam.score:.4f}".replace("-", "\u2212") in shown
    assert shown.count("cut off at the limit of new tokens</span>") == 3
    assert "tree of the search" in shown
    words = "dgsgpt sample one@20 --prompt ab --beams 3 --max-new-tokens 6 --length-penalty 0.5"
    assert words in [code.value for code in app.code]


def test_the_tree_can_show_less_and_says_so(open_page: OpenPage, run: Run) -> None:
    app = search(look(open_page, "Beams"), beams=4, new=16)
    app.selectbox(key="bm_depth").set_value(12)
    app.selectbox(key="bm_others").set_value(0).run()
    tree = app.session_state["bm_found"].result.tree
    shown = html_of(app)
    assert f"of {len(tree)}\u00a0tokens looked at · the first 12 of 16\u00a0tokens in depth" in shown
    assert "0 of " in shown


def test_what_was_found_stays_and_is_said_to_be_of_other_settings(open_page: OpenPage, run: Run) -> None:
    app = search(look(open_page, "Beams"))
    assert "of another prompt, checkpoint or settings" not in html_of(app)
    app.number_input(key="bm_n").set_value(2).run()
    assert "of another prompt, checkpoint or settings" in html_of(app)
    assert "1 · best" in html_of(app)


@pytest.mark.parametrize("damage", [False, True])
def test_a_search_that_cannot_be_is_one_line(open_page: OpenPage, run: Run, damage: bool, runs_dir: Path) -> None:
    if damage:
        flip_a_bit(run.path / "checkpoints" / "step_00000020")
    app = search(look(open_page, "Beams", "ab" if damage else "xyz"))
    _, problem = app.session_state["bm_said"]
    assert ("damaged" if damage else "'x'") in problem
    assert f"✕ {problem}" in html_of(app).replace("&#x27;", "'")
    assert str(runs_dir) not in html_of(app)


# ---------------------------------------------------------------- batch
def test_each_row_is_what_its_prompt_and_seed_give_alone(open_page: OpenPage, run: Run) -> None:
    app = look(open_page, "Batch")
    app.number_input(key="pg_new").set_value(5)
    app.number_input(key="bt_samples").set_value(2)
    app.text_area(key="bt_prompts").set_value("a b\n\nc\n").run()
    button(app, "Write all").click().run()
    job = app.session_state["bt_job"]
    assert job.done
    assert [(one["line"], one["prompt"], one["seed"]) for one in job.in_order()] == [
        (1, "a b", 42), (1, "a b", 43), (3, "c", 44), (3, "c", 45),
    ]  # fmt: skip
    opened = load_checkpoint(run.path / "checkpoints" / "step_00000020")
    for one in job.in_order():
        rules = {**job.rules, "seed": one["seed"]}
        assert one["text"] == generate(opened.model, opened.tokenizer, one["prompt"], **rules)
    (table,) = app.dataframe
    assert list(table.value["text"]) == [one["text"] for one in job.in_order()]
    assert "4 of 4" in html_of(app)
    assert "dgsgpt sample one@20 --prompts FILE --out texts.jsonl --samples 2" in app.code[-1].value


def test_a_file_is_read_by_its_kind_and_its_errors_name_the_line(open_page: OpenPage, run: Run) -> None:
    app = look(open_page, "Batch")
    app.segmented_control(key="bt_source").set_value("From a file").run()
    assert button(app, "Write all").disabled
    lines = [json.dumps({"prompt": "ab"}), json.dumps({"text": "c"})]
    app.file_uploader(key="bt_file").upload("some.jsonl", "\n".join(lines).encode(), "application/json").run()
    assert "✕ some.jsonl: line 2 must be a JSON object" in html_of(app)
    app.file_uploader(key="bt_file").upload("some.jsonl", lines[0].encode(), "application/json").run()
    assert "--prompts some.jsonl" in app.code[-1].value
    assert "1\u00a0prompt, 1\u00a0text" in html_of(app)


def test_a_prompt_of_unknown_characters_is_named_and_the_page_goes_on(open_page: OpenPage, run: Run) -> None:
    app = look(open_page, "Batch")
    app.number_input(key="pg_new").set_value(3)
    app.text_area(key="bt_prompts").set_value("ab\n\n<b>xyz").run()
    button(app, "Write all").click().run()
    assert "✕ line 3: " in html_of(app)
    assert "<b>xyz" not in html_of(app).replace(app.text_area(key="bt_prompts").value or "", "")
    app.text_area(key="bt_prompts").set_value("ab").run()
    button(app, "Write all").click().run()
    assert app.session_state["bt_job"].done


def test_too_many_are_refused_before_anything_is_written(open_page: OpenPage, run: Run) -> None:
    app = look(open_page, "Batch")
    app.text_area(key="bt_prompts").set_value("a\n" * (batch_run.MAX_PROMPTS + 1)).run()
    assert "this page takes at most 1,000" in html_of(app)
    assert button(app, "Write all").disabled
    assert "bt_job" not in app.session_state
