"""Figures of attention show the maps, the windows and the groups; labels are text."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.inspect.attention import AttentionLook, look_at_attention
from dgsgpt.ui.attention_figures import cap_of, heat, strip
from dgsgpt.ui.theme import DARK, LIGHT
from tests.model.tiny import tiny_model

TEXT = "<b>It</b> was & so “it” was: &lt;i&gt; $x$"


def look(layer: int = 0, last: int = 20, **model: Any) -> AttentionLook:
    tokenizer = ByteTokenizer()
    made = tiny_model(**{"vocab_size": 256, "window": {"size": 6, "pattern": "SLB"}, **model})
    return look_at_attention(made, tokenizer, tokenizer.encode(TEXT), layer, last)


def cells(trace: Any) -> np.ndarray:
    return np.asarray(trace.z, dtype=float)


def test_the_matrix_holds_the_map_and_leaves_out_what_the_head_cannot_see() -> None:
    found = look()
    size, place = 20, np.arange(20)
    age = place[:, None] - place
    shown, grey, before, _ = heat(LIGHT, found, 3).data
    seen = (age >= 0) & (age < 6)
    np.testing.assert_array_equal(np.isnan(cells(shown)), ~seen)
    np.testing.assert_array_equal(cells(shown)[seen], found.maps[3][seen])
    np.testing.assert_array_equal(~np.isnan(cells(grey)), (age >= 6))
    assert {color for _, color in grey.colorscale} == {LIGHT["idlebg"]}
    np.testing.assert_allclose(cells(before)[:5, 0], found.earlier[3][:5])
    assert np.isnan(cells(before)[5:]).all()
    assert cells(shown).shape == (size, size)
    assert (shown.xgap, shown.ygap) == (1, 1)


def test_a_global_layer_has_no_grey_and_a_layer_of_both_kinds_in_half_of_its_heads() -> None:
    assert [trace.name for trace in heat(LIGHT, look(1), 0).data] == [None, None]
    kinds = [[trace.name for trace in heat(LIGHT, look(2), head).data].count("outside") for head in range(4)]
    assert kinds == [2, 2, 0, 0]


def test_a_text_shown_whole_has_no_column_for_what_is_before() -> None:
    found = look(1, last=128)
    figure = heat(DARK, found, 0)
    assert len(figure.data) == 1
    assert "before" not in figure.layout.xaxis.ticktext


def test_labels_are_escaped_for_plotly_on_both_axes_and_on_hover() -> None:
    figure = heat(LIGHT, look(1, last=128), 0)
    names = list(figure.layout.yaxis.ticktext)
    assert names[:3] == ["&lt;", "b", "&gt;"]
    assert names[9:15] == ["·", "w", "a", "s", "·", "&amp;"]
    said = [text for row in figure.data[0].text for text in row]
    for text in (*names, *figure.layout.xaxis.ticktext, *said):
        assert not re.search(r"<|&(?!amp;|lt;|gt;)", text)
    assert figure.data[0].text[2][0].startswith("“&gt;” looks at “&lt;”: ")


@pytest.mark.parametrize("last", [12, 96])
def test_every_cell_says_its_share(last: int) -> None:
    found = look(0, last=last, block_size=96)
    said = heat(LIGHT, found, 1).data[0].text
    share = float(found.maps[1, -1, -2])
    assert said[-1][-2].endswith(f"{100 * share:.1f}\u00a0%")


# ---------------------------------------------------------------- the strip
def test_the_strip_has_a_map_and_a_handle_for_every_head_and_frames_the_chosen() -> None:
    found = look(2)
    figure = strip(DARK, found, 2)
    maps, handles = [t for t in figure.data if t.type == "heatmap"], figure.data[-1]
    assert len(maps) == len(handles.x) == 4
    assert list(handles.text) == [
        "head 0, group 0: local 6", "head 1, group 0: local 6", "head 2, group 1: global", "head 3, group 1: global"
    ]  # fmt: skip
    frame = figure.layout.shapes[-1]
    assert frame.line.color == DARK["accent"]
    assert frame.x0 < handles.x[2] < frame.x1
    gaps = np.diff(handles.x)
    assert gaps[1] > gaps[0] == pytest.approx(gaps[2])  # those that share keys and values stand together
    for head, one in zip(found.heads, maps, strict=True):
        seen = ~np.isnan(cells(one))
        np.testing.assert_array_equal(cells(one)[seen], found.maps[head.number][seen])
        assert seen.sum() == (20 * 21 // 2 if head.window is None else 6 * 20 - 15)


def test_many_heads_wrap_by_group_and_long_texts_are_pooled_by_their_largest() -> None:
    found = look(1, last=96, n_head=16, n_kv_head=8, block_size=96)
    figure = strip(LIGHT, found, 15)
    handles = figure.data[-1]
    rows = sorted(set(handles.y))
    assert [list(handles.y).count(row) for row in rows] == [12, 4]
    assert cells(figure.data[0]).shape == (len(TEXT.encode()) // 2 + len(TEXT.encode()) % 2,) * 2
    assert np.nanmax(cells(figure.data[0])) == found.maps[0].max()


def test_the_full_colour_is_one_for_the_layer_and_that_of_a_high_share_between_tokens() -> None:
    found = look(1, last=12)
    among = np.sort([found.maps[h, row, key] for h in range(4) for row in range(12) for key in range(row)])
    assert among[int(0.97 * len(among))] <= cap_of(found) <= among[-1]
    assert {trace.zmax for head in range(4) for trace in heat(LIGHT, found, head).data} == {cap_of(found)}
