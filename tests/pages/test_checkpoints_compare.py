"""Checkpoints: two to four side by side on the same text, from the same prompt, and layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt.runs import Run
from tests.checkpoint_factory import flip_a_bit, save
from tests.pages.conftest import OpenPage, button, html_of, labels
from tests.run_factory import config, make_run

TEXT = "It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 40
COMPARE = "Compare on the same text"


@pytest.fixture
def runs(runs_dir: Path) -> list[Run]:
    """Runs with a whole checkpoint each: two of one shape, one with experts, one with another tokenizer."""
    made = [
        make_run(runs_dir, "first", step=200),
        make_run(runs_dir, "second", step=200, config=config(seed=7)),
        make_run(runs_dir, "third", step=200, config=config(moe=True)),
        make_run(runs_dir, "letters", step=200),
    ]
    for i, run in enumerate(made):
        characters = "".join(sorted(set(TEXT))) if run.id == "letters" else None
        save(run, 201 + i, characters, **({"data_fingerprint": "e" * 64} if characters else {}))
    return made


def refs(runs: list[Run]) -> list[str]:
    return [f"{run.id}@{next(iter(run.checkpoints())).name.removeprefix('step_').lstrip('0')}" for run in runs]


def opened(open_page: OpenPage, runs: list[Run]) -> AppTest:
    return open_page("checkpoints", checkpoint=refs(runs))


def compare(app: AppTest, text: str = TEXT) -> AppTest:
    """Paste a text and compare on it."""
    app.selectbox(key="ck_text").set_value("(pasted)").run()
    app.text_area(key="ck_pasted").set_value(text).run()
    button(app, COMPARE).click().run()
    return app


def chart(app: AppTest, alt: str) -> Any:
    (found,) = [c for c in app.get("plotly_chart") if alt in c.proto.alt]
    return json.loads(found.proto.spec)


# ---------------------------------------------------------------- the same text
def test_two_are_compared_on_a_pasted_text(open_page: OpenPage, runs: list[Run]) -> None:
    app = opened(open_page, runs[:2])
    assert "Where one is better" not in html_of(app)
    compare(app)
    shown = html_of(app)
    for part in ("identical windows", "bootstrap draws", "Rare tokens", "Last quarter", "Where one is better", "sha "):
        assert part in shown, part
    assert any(verdict in shown for verdict in ("A is better", "B is better", "no difference shown"))
    assert COMPARE not in labels(app)
    assert len(chart(app, "95 % intervals")["data"]) == 1
    assert any(c.value == "dgsgpt compare first@201 second@202 --text FILE --max-tokens 20000" for c in app.code)


def test_a_rerun_costs_nothing_and_another_length_is_another_comparison(
    open_page: OpenPage, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = compare(opened(open_page, runs[:2]))
    monkeypatch.setattr("dgsgpt.evaluation.paired.compare", None)  # would fail if it were called again
    app.run()
    assert "bootstrap draws" in html_of(app)
    app.selectbox(key="ck_text_tokens").set_value(5000).run()
    assert COMPARE in labels(app)


def test_the_same_weights_are_identical_with_exactly_zero(open_page: OpenPage, runs: list[Run]) -> None:
    save(runs[0], 300)
    save(runs[1], 300)  # the same seed, shape and tokenizer
    app = compare(open_page("checkpoints", checkpoint=["first@300", "second@300"]))
    shown = html_of(app)
    assert "identical" in shown
    assert "95 % interval +0.0000 to +0.0000" in shown
    assert "A is better" not in shown
    assert "B is better" not in shown
    (dots,) = chart(app, "95 % intervals")["data"]
    assert "no difference here" in shown
    assert dots["name"] == "A − B"


def test_three_are_compared_with_the_first(open_page: OpenPage, runs: list[Run]) -> None:
    app = compare(opened(open_page, runs[:3]))
    shown = html_of(app)
    assert "A vs B: " in shown
    assert "A vs C: " in shown
    assert "A − C" in shown
    assert [trace["name"] for trace in chart(app, "95 % intervals")["data"]] == ["A − B", "A − C"]
    app.segmented_control(key="ck_against").set_value("C").run()
    assert "C better" in html_of(app)


def test_four_with_another_tokenizer_are_compared_in_bits_per_byte(open_page: OpenPage, runs: list[Run]) -> None:
    app = compare(opened(open_page, runs))
    shown = html_of(app)
    assert "over the bytes of the text" in shown
    assert "Rare tokens" not in shown
    assert "Their tokenizers differ" in shown
    assert [trace["name"] for trace in chart(app, "95 % intervals")["data"]] == ["A − B", "A − C", "A − D"]
    assert "D and A differ in their tensors" in shown or "C, D and A differ in their tensors" in shown


def test_passages_are_turned_over(open_page: OpenPage, runs: list[Run]) -> None:
    app = compare(opened(open_page, runs[:2]))
    assert "1 of 3" in html_of(app) or "1 of 4" in html_of(app)
    app.button(key="ck_after").click().run()
    assert "2 of " in html_of(app)
    app.segmented_control(key="ck_order").set_value("place").run()
    assert "0\u00a0% into the text" in html_of(app)


def test_text_is_never_markup(open_page: OpenPage, runs: list[Run]) -> None:
    app = compare(opened(open_page, runs[:2]), "<img src=x onerror=alert(1)> & <b>bold</b>\n" * 60)
    bodies = "\n".join(element.proto.body for element in app.get("html"))
    assert "<img src=x" not in bodies
    assert "<b>bold" not in bodies


# ---------------------------------------------------------------- what can be wrong
@pytest.mark.parametrize(
    ("text", "said"),
    [("ab", "too short|blocks|at least|longer"), ("ß" * 3000, "does not know")],
    ids=["short", "unknown"],
)
def test_a_text_that_cannot_be_used_is_said_in_one_line(
    open_page: OpenPage, runs: list[Run], text: str, said: str
) -> None:
    app = compare(opened(open_page, [runs[0], runs[3]]), text)
    assert COMPARE in labels(app)
    problems = [line for line in html_of(app).splitlines() if 'role="alert"' in line]
    assert any(word in problem for problem in problems for word in said.split("|")), problems


def test_a_damaged_checkpoint_is_named_and_the_page_stays(open_page: OpenPage, runs: list[Run]) -> None:
    flip_a_bit(next(iter(runs[1].checkpoints())))
    app = compare(opened(open_page, runs[:2]))
    shown = html_of(app)
    assert "second, step 202" in shown
    assert str(runs[1].path) not in shown
    assert COMPARE in labels(app)


def test_one_without_config_compares_nothing_but_stays(open_page: OpenPage, runs: list[Run]) -> None:
    (next(iter(runs[1].checkpoints())) / "config.yaml").unlink()
    app = opened(open_page, runs[:2])
    assert "config.yaml of one of them is missing or damaged" in html_of(app)


def test_an_imported_model_is_compared_by_its_model_settings(open_page: OpenPage, runs: list[Run]) -> None:
    save(runs[2], 400, imported={"family": "gpt2", "source": "x"}, data_fingerprint=None)
    app = open_page("checkpoints", checkpoint=["first@201", "third@400"])
    shown = html_of(app)
    assert "B imported: how it was trained is not known" in shown
    assert "model settings" in shown
    assert "Compare on the same text instead" in shown


# ---------------------------------------------------------------- same prompt, weights
def test_all_write_from_one_prompt_and_the_first_difference_is_marked(open_page: OpenPage, runs: list[Run]) -> None:
    app = opened(open_page, runs[:3])
    app.number_input(key="ck_new").set_value(24).run()
    app.number_input(key="ck_temp").set_value(1.0).run()
    button(app, "Write with all").click().run()
    outputs = app.session_state["ck_outputs"]
    assert [outputs[ref].stats.tokens for ref in refs(runs[:3])] == [24, 24, 24]
    assert {outputs[ref].stats.seed for ref in refs(runs[:3])} == {42}
    shown = html_of(app)
    assert shown.count("nats/token") == 3
    assert all(f"at the bar {letter} gave" in shown for letter in "ABC")
    assert "seed 42, temperature 1" in shown


def test_the_same_weights_write_the_same(open_page: OpenPage, runs: list[Run]) -> None:
    save(runs[0], 300)
    save(runs[1], 300)
    app = open_page("checkpoints", checkpoint=["first@300", "second@300"])
    button(app, "Write with both").click().run()
    assert html_of(app).count("the same 96\u00a0tokens in all") == 2


def test_weights_of_one_shape_have_a_distance_and_of_another_none(open_page: OpenPage, runs: list[Run]) -> None:
    app = opened(open_page, runs[:3])
    assert [t["name"] for t in chart(app, "root mean square")["data"]] == ["A", "B", "C"]
    assert [t["name"] for t in chart(app, "Relative distance")["data"]] == ["B"]
    assert "C and A differ in their tensors" in html_of(app)


def test_large_files_are_read_when_asked_for(
    open_page: OpenPage, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgsgpt.ui.weights_view.AT_ONCE_BYTES", 10)
    app = opened(open_page, runs[:2])
    assert "Distance from A" not in html_of(app)
    button(app, "Measure").click().run()
    assert "Distance from A" in html_of(app)


def test_one_alone_has_its_weights_by_layer(open_page: OpenPage, runs: list[Run]) -> None:
    app = opened(open_page, runs[:1])
    assert len(chart(app, "root mean square")["data"]) == 1
    tables = [list(frame.value.columns) for frame in app.dataframe]
    assert any("tensor" in columns and "not finite" in columns for columns in tables)
