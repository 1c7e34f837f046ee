"""What the looks into a model share: results that are kept, which text, and what is said of it."""

from __future__ import annotations

import html
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.errors import DgsgptError
from dgsgpt.generation import Stats
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui import looking
from dgsgpt.ui.playground_view import Output, Shown
from tests.checkpoint_factory import save
from tests.run_factory import make_run


@pytest.fixture
def entry(runs_dir: Path) -> table.Entry:
    run = make_run(runs_dir, "one", step=20)
    save(run, 10)
    return table.entries([run])[0]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    state: dict[str, Any] = {}
    monkeypatch.setattr("streamlit.session_state", state)
    return state


def written(entry: table.Entry, prompt: str, ids: list[int], problem: str | None = None) -> Output:
    stats = Stats(len(prompt), 0, 1, tokens=len(ids), ids=ids)
    return Output(entry.ref, "one", "#112233", prompt, {}, stats=stats, problem=problem)


# ---------------------------------------------------------------- results
def test_a_look_is_computed_once_and_only_the_latest_are_kept(entry: table.Entry, session: dict[str, Any]) -> None:
    computed: list[int] = []

    def look(question: int) -> int:
        def find(opened: object) -> int:
            computed.append(question)
            return question

        return looking.look(entry, question, find)

    everything = range(looking.MOST_KEPT + 3)
    assert [look(i) for i in everything] == list(everything) == computed
    assert look(everything[-1]) == everything[-1]
    assert len(computed) == len(everything)
    assert len(session["pg_looks"]) == looking.MOST_KEPT
    look(0)  # left long ago
    assert computed[-1] == 0


def test_a_look_at_other_weights_is_another_look(entry: table.Entry, session: dict[str, Any]) -> None:
    assert looking.look(entry, "q", lambda opened: 1) == 1
    save(entry.run, 20)  # another checkpoint, which takes the place of the first
    for file in (entry.info.path.parent / "step_00000020").iterdir():
        file.replace(entry.info.path / file.name)
    assert looking.look(entry, "q", lambda opened: 2) == 2


def test_what_is_refused_is_not_kept_and_the_model_is_free_again(entry: table.Entry, session: dict[str, Any]) -> None:
    def refuse(opened: object) -> None:
        raise DgsgptError("no")

    with pytest.raises(DgsgptError):
        looking.look(entry, "q", refuse)
    assert looking.look(entry, "q", lambda opened: 1) == 1


# ---------------------------------------------------------------- the text
def test_the_subject_is_what_was_written_else_the_prompt_as_it_stands(entry: table.Entry) -> None:
    failed, empty = written(entry, "no", [1], problem="broke"), written(entry, "no", [])
    for outputs in ([], [failed], [empty]):
        found = looking.subject(Shown([entry], "ab", outputs), entry, "")
        assert (found.ids, found.prompt, found.written) == ((97, 98), "ab", False)
    found = looking.subject(Shown([entry], "edited since", [failed, written(entry, "ab", [99, 100])]), entry, "A")
    assert (found.ids, found.prompt, found.written) == ((97, 98, 99, 100), "ab", True)


@pytest.mark.parametrize(
    ("shown", "read", "cut", "said"),
    [
        (14, 14, 0, "all 14\u00a0tokens of the prompt"),
        (24, 108, 0, "the last 24 of 108\u00a0tokens of the prompt"),
        (
            24,
            128,
            1400,
            "the last 24 of 128\u00a0tokens of the prompt; 1\u202f400 before these did not fit the context",
        ),
    ],
)
def test_what_is_left_out_is_said(shown: int, read: int, cut: int, said: str) -> None:
    assert looking.cut_note(shown, read, cut, "the prompt") == said


@given(st.text(max_size=20))
def test_ticks_of_figures_are_text(label: str) -> None:
    shown = looking.tick(label)
    assert "<" not in shown
    assert html.unescape(shown) == html.unescape(html.escape(label, quote=False))


def test_the_command_holds_short_texts_and_asks_for_a_file_else(
    entry: table.Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("streamlit.code", lambda text, *a, **k: shown.append(text))
    looking.command(entry, "it's $x", "attention", "--layer", 2)
    for text in ("", "two\nlines", "x" * 100):
        looking.command(entry, text, "surprise")
    assert shlex.split(shown[0])[3:] == ["--what", "attention", "--layer", "2", "--text", "it's $x"]
    assert shown[1:] == ["dgsgpt inspect one@10 --what surprise --file FILE"] * 3
