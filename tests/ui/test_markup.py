"""Markup is safe by type: whatever text is put in comes out as text."""

from __future__ import annotations

import html
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.ui import atoms
from dgsgpt.ui.markup import Html, esc, join, markup

HOSTILE = '<img src=x onerror="alert(1)">&\'{}'


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.tags = "", []

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def read(content: str) -> _Reader:
    reader = _Reader()
    reader.feed(content)
    reader.close()
    return reader


def test_text_is_escaped_and_markup_is_not() -> None:
    assert esc("<b>") == "&lt;b&gt;"
    assert esc(Html("<b>")) == "<b>"
    assert esc(esc("<b>")) == esc("<b>")
    assert join(("<", Html("<br>"), ">")) == "&lt;<br>&gt;"
    assert markup("<b>{}</b>{x}", "<", x=Html("<i>")) == "<b>&lt;</b><i>"


@given(st.text())
def test_any_text_in_a_template_stays_text(text: str) -> None:
    assert html.unescape(markup("{}", text)) == text


def test_formatted_markup_is_text_again() -> None:
    # An f-string forgets the type, so mixing pieces by hand escapes too much instead of too little.
    assert esc(f"{Html('<b>')}") == "&lt;b&gt;"


@pytest.mark.parametrize(
    "piece",
    [
        atoms.text(HOSTILE),
        atoms.bold(HOSTILE),
        atoms.tag(HOSTILE),
        atoms.pill(HOSTILE),
        atoms.run_name(HOSTILE, "#123456"),
        atoms.delta(HOSTILE, True, HOSTILE),
        atoms.table_html([[HOSTILE, HOSTILE]], "1fr 1fr", [HOSTILE, HOSTILE]),
    ],
    ids=["text", "bold", "tag", "pill", "run_name", "delta", "table"],
)
def test_hostile_text_makes_no_element(piece: Html) -> None:
    reader = read(piece)
    assert not [tag for tag, _ in reader.tags if tag == "img"]
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert HOSTILE.lower()[:10] in reader.text.lower()


@pytest.mark.parametrize("state", sorted(atoms.STATES))
def test_every_state_has_a_word_and_a_glyph(state: str) -> None:
    label, _, glyph = atoms.STATES[state]
    assert read(atoms.pill(state)).text == glyph + label


def test_delta_has_sign_arrow_and_colour_together() -> None:
    better, worse, neutral = (atoms.delta(*a) for a in (("−0.02", True), ("+0.02", False), ("0.5 s", None)))
    assert "▼" in better
    assert "▲" in worse
    assert "▲" not in neutral
    assert "▼" not in neutral


def test_spark_needs_two_known_values() -> None:
    assert atoms.spark([], "#000000") == ""
    assert atoms.spark([1.0, float("nan")], "#000000") == ""
    assert atoms.spark([1.0, 1.0], "#000000").startswith("<img")
