"""Writing into an output that survives being interrupted, and showing text that is never markup."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.runs import Run
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui import playground_view as view
from tests.checkpoint_factory import flip_a_bit, save
from tests.run_factory import make_run

GREEDY = {"max_new_tokens": 12, "temperature": 0.0, "seed": 1}


@pytest.fixture
def run(runs_dir: Path) -> Run:
    return make_run(runs_dir, "one", step=20)


def entry_of(run: Run) -> table.Entry:
    return table.entries([run])[0]


def output(prompt: str = "ab", **settings: Any) -> view.Output:
    return view.Output("one@10", "one", "#112233", prompt, {**GREEDY, **settings})


# ---------------------------------------------------------------- writing
def test_what_is_written_is_what_the_engine_generates(run: Run) -> None:
    from dgsgpt.checkpoint import load_checkpoint
    from dgsgpt.generation import generate

    path = save(run, 10)
    made = output(temperature=1.0)
    view.write(entry_of(run), made, lambda: None)
    opened = load_checkpoint(path)
    assert made.text == generate(opened.model, opened.tokenizer, "ab", **made.settings)
    assert made.stats is not None
    assert made.stats.tokens == 12
    assert made.remark().startswith("as long as asked for · seed 1")
    assert "12\u00a0tokens" in made.figures()


def test_an_interrupted_stream_keeps_its_text_and_frees_the_model(run: Run) -> None:
    class Rerun(BaseException):
        """What Streamlit raises in a script when a button is pressed."""

    save(run, 10)
    made = output(max_new_tokens=4000)

    def draw() -> None:
        if made.text:
            raise Rerun

    with pytest.raises(Rerun):
        view.write(entry_of(run), made, draw)
    assert made.text
    assert made.stats is not None
    assert made.stats.tokens < 4000
    assert made.stats.finish_reason == "closed"
    assert made.busy == ""
    assert made.remark().startswith("stopped")
    again = output()
    view.write(entry_of(run), again, lambda: None)  # the turn was given back
    assert again.problem is None


def test_stopping_while_the_checkpoint_opens_is_told(run: Run) -> None:
    save(run, 10)
    made = output()

    def draw() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        view.write(entry_of(run), made, draw)
    assert made.remark() == "stopped before the first token"


def test_a_cropped_prompt_is_said(run: Run) -> None:
    save(run, 10)
    made = output("x" * 100)
    view.write(entry_of(run), made, lambda: None)
    assert "the first 69\u00a0tokens of the prompt did not fit the context of 32" in made.remark()


@pytest.mark.parametrize("how", ["empty prompt", "unknown characters", "flipped bit", "bad setting"])
def test_errors_are_one_line_without_paths(run: Run, how: str) -> None:
    path = save(run, 10, characters="abc" if how == "unknown characters" else None)
    if how == "flipped bit":
        flip_a_bit(path)
    prompt = {"empty prompt": "", "unknown characters": "abzß"}.get(how, "ab")
    made = output(prompt, **({"top_p": 7.0} if how == "bad setting" else {}))
    view.write(entry_of(run), made, lambda: None)
    assert made.problem
    assert "\n" not in made.problem
    assert str(path) not in made.problem
    assert made.text == ""
    if how == "unknown characters":
        assert "z" in made.problem
        assert "ß" in made.problem


def test_unknown_characters_are_said_before_anything_is_generated(run: Run) -> None:
    save(run, 10, characters="abc")
    entry = entry_of(run)
    note, usable = view.prompt_note(entry, "abz", 32)
    assert not usable
    assert "z" in note
    note, usable = view.prompt_note(entry, "abc", 32)
    assert usable
    assert "3 tokens of 32" in note


# ---------------------------------------------------------------- showing
@given(st.text(), st.text(), st.none() | st.integers(0, 40))
def test_shown_text_is_escaped_and_complete(prompt: str, written: str, split_at: int | None) -> None:
    shown = view.text_html(prompt, written, "#112233", split_at)
    tags = re.findall(r"<[^>]*>", shown)
    assert all(re.fullmatch(r'</?(div|span)( style="[^"<>]*")?( aria-live="off")?>', tag) for tag in tags)
    assert html.unescape(re.sub(r"<[^>]*>", "", shown)) == html.unescape(html.escape(prompt + written))


@given(st.text(max_size=80))
def test_labels_for_markdown_have_no_live_character(text: str) -> None:
    label = view.plain_label(text)
    assert "\n" not in label
    assert not re.search(r"(?<!\\)(?:\\\\)*[*_`\[\]<>$:!]", label)


@given(st.text(alphabet="ab\n\t\\"))
def test_escapes_are_read_back(text: str) -> None:
    typed = text.replace("\\", "\\\\").replace("\n", r"\n").replace("\t", r"\t")
    assert view.unescape(typed) == text


def test_presets_are_recognised() -> None:
    for name, values in view.PRESETS.items():
        assert view.preset_of(values) == name
    assert view.preset_of({**view.PRESETS["Even"], "pg_temp": 0.7}) is None


def test_presets_are_valid_settings() -> None:
    for values in view.PRESETS.values():
        assert values["pg_top_k"] in view.TOP_K
        assert 0.05 <= values["pg_top_p"] <= 1
        assert 0 <= values["pg_temp"] <= 2
