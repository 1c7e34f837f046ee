"""Playground: looking into a model, at its attention, its experts and what surprises it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt.checkpoint import load_checkpoint
from dgsgpt.inspect.surprise import MOST_TOKENS, surprise
from dgsgpt.runs import create_run
from dgsgpt.ui import surprise_view as view
from dgsgpt.ui.theme import LIGHT
from tests.checkpoint_factory import flip_a_bit, save
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.run_factory import config, make_run


@pytest.fixture
def two(runs_dir: Path) -> tuple[Path, Path]:
    dense = save(make_run(runs_dir, "one", step=20), 10)
    return dense, save(create_run(runs_dir, config(moe=True), "experts"), 20)


def charts(app: AppTest) -> list[dict[str, Any]]:
    return [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]


def paste(app: AppTest, text: str) -> str:
    app.text_area(key="pg_paste").set_value(text).run()
    return html_of(app)


def test_a_pasted_text_is_coloured_and_its_figures_are_the_models(open_page: OpenPage, two: tuple[Path, Path]) -> None:
    app = open_page("playground", checkpoint="one@10", look="Surprise of a text")
    shown = paste(app, "It was <b>so</b>.")
    opened = load_checkpoint(two[0])
    found = surprise(opened.model, opened.tokenizer, "It was <b>so</b>.")
    assert f"{found.loss:.4f}" in shown
    assert f"{found.bpb:.4f}" in shown
    assert view.coloured(found, LIGHT) in shown
    assert "dgsgpt inspect one@10 --what surprise --text 'It was <b>so</b>.'" in [c.value for c in app.code]
    assert "The text appears here" in paste(app, "")


@pytest.mark.parametrize(
    ("text", "said"), [("z", "at least 2"), ("abzß", "&#x27;z&#x27;, &#x27;ß&#x27;"), ("a" * (MOST_TOKENS + 9), "")]
)
def test_texts_that_cannot_be_judged_or_not_all_are_told(
    open_page: OpenPage, runs_dir: Path, text: str, said: str
) -> None:
    save(make_run(runs_dir, "one", step=20), 10, characters="abcz" if text == "z" else "abc")
    shown = paste(open_page("playground", look="Surprise of a text"), text)
    assert (said or "only the first 2\u202f048 were judged") in shown


def test_two_are_shown_one_by_one_or_by_their_difference(open_page: OpenPage, two: tuple[Path, Path]) -> None:
    app = open_page("playground", checkpoint=["one@10", "experts@20"], look="Surprise of a text")
    found = {}
    for letter, path in zip("AB", two, strict=True):
        opened = load_checkpoint(path)
        found[letter] = surprise(opened.model, opened.tokenizer, "It was so.")
        app.segmented_control(key="pg_whose").set_value(letter).run()
        assert view.coloured(found[letter], LIGHT) in paste(app, "It was so.")
    app.segmented_control(key="pg_whose").set_value("Difference").run()
    shown = html_of(app)
    gap = found["A"].nats - found["B"].nats
    assert f"{'B' if gap > 0 else 'A'} better by {abs(gap):.2f} nats in all" in shown
    assert all(f"{one.loss:.4f}" in shown for one in found.values())
    assert "--against experts@20" in app.code[-1].value


def test_attention_waits_until_something_was_written_or_it_is_asked_for(
    open_page: OpenPage, two: tuple[Path, Path]
) -> None:
    app = open_page("playground", checkpoint="experts@20")
    assert charts(app) == []
    app.text_area(key="pg_prompt").set_value("<b>abc").run()
    button(app, "Look at the prompt now").click().run()
    attention, routing, heads = charts(app)
    assert attention["layout"]["yaxis"]["ticktext"] == ["&lt;", "b", "&gt;", "a", "b", "c"]
    assert routing["layout"]["yaxis"]["ticktext"] == [f"expert {e}" for e in range(4)]
    assert len(heads["data"]) == 3
    assert "all 6\u00a0tokens of the prompt" in html_of(app)


def test_attention_is_of_what_was_written_and_follows_layer_head_and_number(
    open_page: OpenPage, two: tuple[Path, Path]
) -> None:
    app = open_page("playground", checkpoint=["one@10", "experts@20"])
    app.number_input(key="pg_new").set_value(20)
    app.text_area(key="pg_prompt").set_value("x" * 30)
    button(app, "Generate").click().run()
    assert "Look at the prompt now" not in labels(app)
    assert "the last 24 of 32\u00a0tokens of the prompt and what was written; 18 before these" in html_of(app)
    assert "This model is dense" in html_of(app)
    before = charts(app)[0]
    app.selectbox(key="pg_head").set_value(1).run()
    assert charts(app)[0]["data"] != before["data"]
    app.selectbox(key="pg_last").set_value(12).run()
    assert len(charts(app)[0]["layout"]["yaxis"]["ticktext"]) == 12
    app.selectbox(key="pg_layer").set_value(0).run()
    assert "--layer 0 --last 12" in app.code[-1].value
    app.segmented_control(key="pg_look_side").set_value("B").run()
    assert "This model is dense" not in html_of(app)
    assert "gate weight of the two experts" in html_of(app)


def test_a_damaged_checkpoint_is_one_line_and_the_page_stays(open_page: OpenPage, two: tuple[Path, Path]) -> None:
    flip_a_bit(two[0])
    app = open_page("playground", checkpoint="one@10")
    button(app, "Look at the prompt now").click().run()
    shown = html_of(app)
    assert "damaged" in shown
    assert str(two[0]) not in shown


def test_looks_are_kept_so_that_a_rerun_opens_nothing(
    open_page: OpenPage, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = open_page("playground", checkpoint="experts@20")
    button(app, "Look at the prompt now").click().run()
    shown = charts(app)
    monkeypatch.setattr("dgsgpt.inspect.attention.attention_maps", lambda *a, **k: pytest.fail("computed again"))
    monkeypatch.setattr("dgsgpt.inspect.routing.routing", lambda *a, **k: pytest.fail("computed again"))
    app.run()
    assert charts(app) == shown
    app.selectbox(key="pg_head").set_value(1).run()  # another head of the same layer is there already
    assert charts(app) != shown
