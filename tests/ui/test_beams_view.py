"""The tree of a beam search on paper: nothing lost, nothing overlapping, no line that crosses; words and commands."""

from __future__ import annotations

import math
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.checkpoint import CheckpointInfo
from dgsgpt.generation.beam import Beam, BeamResult, Node
from dgsgpt.runs import Run
from dgsgpt.ui import beam_tree, beams_view
from dgsgpt.ui.beam_layout import Layout, kinds_of, lay_out
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.theme import LIGHT

EVERY = 10**9
END = 0


@st.composite
def searches(draw: st.DrawFn) -> BeamResult:
    """Any tree that a search could leave: only nodes that went on have children, texts are of those that ended."""
    tree: list[Node] = []
    for token in range(1, draw(st.integers(1, 40)) + 1):
        alive = [at for at, node in enumerate(tree) if node.state == "alive"]
        parent = draw(st.sampled_from([None, *alive])) if alive else None
        state = draw(st.sampled_from(["alive", "alive", "finished", "pruned"]))
        depth, logprob = (1, 0.0) if parent is None else (tree[parent].depth + 1, tree[parent].logprob)
        tree.append(Node(token, parent, depth, logprob - draw(st.floats(0.01, 9)), state))  # type: ignore[arg-type]
    ended = [at for at, node in enumerate(tree) if node.state == "finished"]
    ends = draw(st.lists(st.sampled_from(ended), unique=True, max_size=5)) if ended else []
    beams = [Beam("", ids_to(tree, at), -1.0, tree[at].logprob, False, at) for at in ends]
    return BeamResult(beams, tree, 3, 0, max(node.depth for node in tree), 1.0, 0.1)


def ids_to(tree: list[Node], at: int | None) -> list[int]:
    ids: list[int] = []
    while at is not None:
        ids.append(tree[at].token)
        at = tree[at].parent
    return ids[::-1]


def cells(layout: Layout) -> list[tuple[int, int]]:
    """Places that are taken, by row and depth."""
    return [(s.row, depth) for s in layout.segments for depth in range(s.first, s.last + 1)]


# ---------------------------------------------------------------- the layout
@given(searches())
def test_every_text_is_a_path_and_every_node_is_counted_once(result: BeamResult) -> None:
    layout = lay_out(result, EVERY, EVERY)
    assert layout.hidden.total() == 0
    assert sorted(at for segment in layout.segments for at in segment.nodes) == list(range(len(result.tree)))
    for rank, beam in enumerate(result.beams, 1):
        (at,) = [i for i, segment in enumerate(layout.segments) if segment.rank == rank]
        assert [result.tree[node].token for node in layout.path(at)] == beam.ids
        assert layout.segments[at].kind == ("best" if rank == 1 else "found")
    assert sum(segment.rank is not None for segment in layout.segments) == len(result.beams)


@given(searches(), st.integers(1, 6), st.integers(0, 12))
def test_nothing_overlaps_and_no_line_crosses(result: BeamResult, depth: int, others: int) -> None:
    layout = lay_out(result, depth, others)
    taken = cells(layout)
    assert len(set(taken)) == len(taken)
    assert all(row < layout.rows for row, _ in taken)
    for at, parent in enumerate(layout.segments):
        below = [segment for segment in layout.segments if segment.parent == at]
        if below:
            assert min(segment.row for segment in below) == parent.row  # one goes straight on
            line = {(row, parent.last + 1) for row in range(parent.row, max(s.row for s in below) + 1)}
            others_there = {(s.row, s.first) for s in layout.segments if s.parent != at} & line
            assert not others_there
            assert all(segment.first == parent.last + 1 for segment in below)


@given(searches(), st.integers(1, 6), st.integers(0, 12))
def test_texts_are_shown_whatever_the_limit_and_the_rest_is_counted(
    result: BeamResult, depth: int, others: int
) -> None:
    layout = lay_out(result, depth, others)
    shown = [at for segment in layout.segments for at in segment.nodes]
    kinds = kinds_of(result.tree, [beam.node for beam in result.beams])
    assert {at for at, kind in enumerate(kinds) if kind in ("best", "found") and result.tree[at].depth <= depth} <= set(
        shown
    )
    assert sum(kinds[at] not in ("best", "found") for at in shown) <= others
    assert layout.shown.total() == len(shown)
    assert layout.shown + layout.hidden == lay_out(result, EVERY, EVERY).shown
    assert all(result.tree[at].depth <= depth for at in shown)


def test_a_chain_is_one_segment_and_what_is_deeper_is_said_to_go_on() -> None:
    tree = [Node(i + 1, i - 1 if i else None, i + 1, -float(i), "alive") for i in range(5)]
    result = BeamResult([], tree, 1, 0, 5, 1.0, 0.1)
    (segment,) = lay_out(result, 3, EVERY).segments
    assert (segment.nodes, segment.first, segment.last, segment.cut) == ((0, 1, 2), 1, 3, True)
    assert not lay_out(result, 5, EVERY).segments[0].cut


def test_of_the_others_those_nearest_to_the_likeliest_of_their_depth_are_shown() -> None:
    tree = [
        Node(1, None, 1, -1.0, "alive"), Node(2, None, 1, -5.0, "pruned"),
        Node(3, 0, 2, -7.0, "finished"), Node(4, 0, 2, -7.5, "pruned"), Node(5, 0, 2, -9.9, "pruned"),
    ]  # fmt: skip
    result = BeamResult([Beam("", [1, 3], -1, -7.0, True, 2)], tree, 1, 0, 2, 1.0, 0.1)
    shown = {at for segment in lay_out(result, EVERY, 1).segments for at in segment.nodes}
    assert shown == {0, 2, 3}


# ---------------------------------------------------------------- the drawing
@given(searches())
def test_columns_go_right_and_each_segment_fits_before_what_follows(result: BeamResult) -> None:
    layout = lay_out(result, EVERY, EVERY)
    widths = [[1 + (result.tree[at].token % 9) for at in segment.nodes] for segment in layout.segments]
    x = beam_tree.columns(layout, widths, [segment.leaf for segment in layout.segments], 8)
    assert len(x) == layout.depth + 2
    assert x == sorted(x)
    for segment, each in zip(layout.segments, widths, strict=True):
        assert x[segment.last + 1] - x[segment.first] >= beam_tree.CHAR * sum(each) + 2 * beam_tree.PAD + beam_tree.GAP


def drawing(tokens: dict[int, bytes], tree: list[Node], beams: list[Beam], prompt: str = "") -> str:
    result = BeamResult(beams, tree, 1, 0, 2, 1.0, 0.1)
    return beam_tree.draw(LIGHT, lay_out(result, EVERY, EVERY), tree, lambda token: tokens[token], [END], prompt)


def test_tokens_are_text_never_markup_and_tell_their_probability() -> None:
    tree = [
        Node(1, None, 1, math.log(0.25), "alive"),
        Node(END, 0, 2, math.log(0.125), "finished"),
        Node(2, 0, 2, math.log(0.01), "pruned"),
    ]
    tokens = {1: b"<b>\n", 2: b"\xe2\x80", END: b""}
    shown = drawing(tokens, tree, [Beam("", [1, END], -1, math.log(0.125), True, 1)], "<i>x")
    assert "<b>" not in shown
    assert "&lt;b&gt;⏎" in shown
    assert "…" not in shown
    assert "&lt;i&gt;x" in shown
    assert "\\xe2\\x80" in shown  # bytes that are no character
    assert "probability 25.0\u00a0%" in shown
    assert "probability 50.0\u00a0%" in shown
    assert "⟨end⟩" in shown
    assert ">✓1<" in shown  # a glyph and a number beside the colour
    assert ">×<" in shown


def test_a_character_of_several_tokens_is_one_piece() -> None:
    tree = [Node(i + 1, i - 1 if i else None, i + 1, -float(i + 1), "alive") for i in range(4)]
    tokens = {1: b"a", 2: b"\xc3", 3: b"\xa9", 4: b"\xff"}
    (segment,) = lay_out(BeamResult([], tree, 1, 0, 4, 1.0, 0.1), EVERY, EVERY).segments
    parts = beam_tree.parts_of(segment, tree, lambda token: tokens[token], [END])
    assert [part.text for part in parts] == ["a", "é", "\\xff"]
    assert "tokens 2 to 3" in parts[1].told
    assert f"probability {beam_tree.probability(math.exp(-2.0))}" in parts[1].told


def test_the_caption_says_what_is_left_out() -> None:
    tree = [Node(1, None, 1, -1.0, "alive"), Node(2, 0, 2, -2.0, "finished"), Node(3, 0, 2, -9.0, "pruned")]
    result = BeamResult([Beam("", [1, 2], -1, -2.0, False, 1)], tree, 1, 0, 2, 1.0, 0.1)
    assert beam_tree.caption(lay_out(result, 9, 9)) == "3 of 3\u00a0tokens looked at"
    assert beam_tree.caption(lay_out(result, 9, 0)) == (
        "2 of 3\u00a0tokens looked at · 0 of 1 given up at once, the likeliest"
    )
    assert "the first 1 of 2\u00a0tokens in depth" in beam_tree.caption(lay_out(result, 1, 9))


# ---------------------------------------------------------------- the command
@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({}, []),
        ({"length_penalty": 0.5, "early_stopping": True}, ["--length-penalty", "0.5", "--early-stopping", "yes"]),
        ({"early_stopping": "never", "n_best": 2}, ["--early-stopping", "never", "--n-best", "2"]),
    ],
)
def test_the_command_names_what_is_not_its_default(rules: dict[str, Any], words: list[str], tmp_path: Any) -> None:
    entry = Entry(CheckpointInfo(tmp_path / "step_00000010", "one", 10), Run(tmp_path / "one"))
    default = {"n_beams": 4, "max_new_tokens": 8, "length_penalty": 1.0, "early_stopping": False, "n_best": 4}
    said = shlex.split(beams_view.command(entry, "it's <b>", {**default, **rules}))
    assert said == ["dgsgpt", "sample", entry.ref, "--prompt", "it's <b>", "--beams", "4", "--max-new-tokens", "8",
                    *words]  # fmt: skip
