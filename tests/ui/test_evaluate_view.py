"""What the Evaluate page makes of a report: sentences, marks, charts, rows, commands and costs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dgsgpt.checkpoint import CheckpointInfo
from dgsgpt.evaluation import Evaluation
from dgsgpt.evaluation.breakdown import Bin, Group, Passage
from dgsgpt.evaluation.kept import Kept
from dgsgpt.evaluation.report import Report
from dgsgpt.evaluation.sliding import forward_tokens
from dgsgpt.runs import Run
from dgsgpt.ui import evaluate_automatic, evaluate_form, evaluate_kept, evaluate_run, evaluate_view
from dgsgpt.ui.checkpoint_list import Entry
from dgsgpt.ui.evaluate_run import PASTED, Asked, Text
from dgsgpt.ui.theme import LIGHT
from tests.run_factory import config, make_run

BINS = (Bin(0.0, 0.1, 90, 0.05, 0.06), Bin(0.9, 1.0, 10, 0.95, 0.5))


def groups(*losses: float, error: float | None = 0.01) -> tuple[Group, ...]:
    """Buckets that double: 1, 2, 3 to 4, 5 to 8 and so on."""
    return tuple(Group(1 if i == 0 else (1 << (i - 1)) + 1, 1 << i, 100, loss, error) for i, loss in enumerate(losses))


def report(by_position: Sequence[Group], stride: int = 32, max_tokens: int | None = None) -> Report:
    evaluation = Evaluation(2.5, 12.18, 1.8, 999, 2000, 32, stride)
    passage = Passage(0, 6, 9.0, "<b>\x00")
    return Report(
        evaluation, 32, stride, max_tokens, 999 * 32 // stride, 0.4, 0.02, tuple(by_position), groups(3.0, 2.0),
        "the text itself", (passage,), (), BINS, "ab" * 32, 2001,
    )  # fmt: skip


@pytest.fixture
def entry(runs_dir: Path) -> Entry:
    run = make_run(runs_dir, "one", step=20)
    return Entry(CheckpointInfo(run.path / "checkpoints" / "step_00000010", run.id, 10), run)


# ---------------------------------------------------------------- does it use long context?
def test_a_loss_that_still_falls_in_the_last_bucket_uses_long_context() -> None:
    said = evaluate_view.uses_context(report(groups(4.0, 3.5, 3.2, 3.0)))
    assert said == (
        "It uses its long context: with 5 to 8 tokens before, a token costs 0.200 ± 0.028 nats less than with 3 to 4."
    )


def test_a_loss_that_stays_is_said_from_where_on() -> None:
    said = evaluate_view.uses_context(report(groups(4.0, 3.5, 3.2, 3.2, 3.19)))
    assert said == (
        "It uses context: with 9 to 16 tokens before, a token costs 0.310 ± 0.028 nats less than with 2; against 3 or "
        "more before, no gain is shown."
    )


def test_gains_too_small_one_by_one_still_add_up() -> None:
    said = evaluate_view.uses_context(report(groups(3.3, 3.2, 3.1, 3.0, error=0.06)))
    assert said.startswith(
        "It uses context: with 5 to 8 tokens before, a token costs 0.200 ± 0.166 nats less than with 2;"
    )


def test_a_loss_that_rises_at_the_end_is_harm() -> None:
    said = evaluate_view.uses_context(report(groups(4.0, 3.0, 3.1, 3.5)))
    assert said.startswith("Long context does harm: with 5 to 8 tokens before, a token costs 0.500 ± 0.028 nats more")
    assert said.endswith("than with 2.")


def test_a_loss_that_never_falls_is_said() -> None:
    assert evaluate_view.uses_context(report(groups(3.0, 3.0, 3.001))).startswith("No use of context is shown")


@pytest.mark.parametrize(("stride", "remedy"), [(32, False), (1, True)])
def test_without_errors_nothing_is_claimed(stride: int, remedy: bool) -> None:
    said = evaluate_view.uses_context(report(groups(4.0, 3.0, error=None), stride))
    assert said.startswith("Too little")
    assert ("A stride as long as the context" in said) == remedy
    assert evaluate_view.uses_context(report(groups(4.0))).startswith("Too little")


# ---------------------------------------------------------------- text and charts
def test_control_characters_are_seen_and_letters_stay() -> None:
    assert evaluate_view.visible("ä b\n\t\x00\x1b\x7f\u202e\U000e0001") == "ä b⏎ ⇥ ␀␛␡\\u202e\\U000e0001"


def test_passages_are_never_markup() -> None:
    shown = str(evaluate_view.passages_html(report(groups(1.0)).hardest))
    assert "&lt;b&gt;␀" in shown
    assert "<b>" not in shown


def test_the_caption_has_hash_and_rule() -> None:
    whole, part = report(groups(1.0)), report(groups(1.0), 8, 500)
    assert "ab" * 32 in evaluate_view.caption(whole)
    assert "do not overlap" in evaluate_view.caption(whole)
    said = evaluate_view.caption(part)
    assert "at most 500 tokens" in said
    assert "begin every 8\u00a0tokens" in said
    assert "at least 25 before" in said


def test_charts_have_a_point_a_group_with_its_error() -> None:
    found = (Group(0, 0, 5, 9.0, None), *groups(4.0, 3.0))
    trace = evaluate_view.groups_chart(LIGHT, found, "#123456", "axis", "never").data[0]
    assert list(trace.y) == [9.0, 4.0, 3.0]
    assert list(trace.error_y.array) == [0.0, 0.01, 0.01]
    assert trace.customdata[0][0] == "never"
    diagonal, points = evaluate_view.calibration_chart(LIGHT, BINS, "#123456").data
    assert list(diagonal.x) == list(diagonal.y)
    assert list(points.x) == [0.05, 0.95]
    assert points.marker.size[0] > points.marker.size[1]


# ---------------------------------------------------------------- strides, costs, commands
@pytest.mark.parametrize(("part", "context", "stride"), [(1, 32, 32), (4, 32, 8), (8, 4, 1), (0, 32, 1)])
def test_strides_are_parts_of_the_context(part: int, context: int, stride: int) -> None:
    assert evaluate_form.stride_of(part, context) == stride


@pytest.mark.parametrize("stride", [32, 16, 8, 4, 1])
@pytest.mark.parametrize("tokens", [10, 32, 1000, 12_345])
def test_the_cost_is_what_is_read_within_a_window(tokens: int, stride: int) -> None:
    assert evaluate_run.about_forward(tokens, 32, stride) == pytest.approx(forward_tokens(tokens, 32, stride), abs=32)


@pytest.mark.parametrize(
    ("text", "context", "stride", "words"),
    [
        (Text("austen", "", 0.1), 32, 32, ""),
        (Text("plays", "", 0.1), 32, 8, "--corpus plays --stride 8"),
        (Text("/a b.txt", "", 0.1, True), 16, 16, "--text '/a b.txt' --context 16"),
        (Text(PASTED, "", 0.1, True), 32, 1, "--text FILE --stride 1"),
    ],
)
def test_the_command_gives_the_same(entry: Entry, text: Text, context: int, stride: int, words: str) -> None:
    found = evaluate_run.command(entry, config(), Asked(text, context, stride))
    assert evaluate_run.shell(found) == f"dgsgpt eval one@10 {words}".strip()


def test_what_is_asked_tells_results_apart() -> None:
    text = Text(PASTED, "", 0.1, True)
    asked = [Asked(text, 32, 32), Asked(text, 32, 8), Asked(text, 16, 16), Asked(text, 32, 32, 500)]
    asked += [Asked(text, 32, 32, pasted="a"), Asked(Text("austen", "", 0.1), 32, 32)]
    assert len({one.key for one in asked}) == len(asked)


# ---------------------------------------------------------------- kept results
def kept(entry: Entry, step: int, **record: Any) -> Kept:
    told = {
        "checkpoint": f"step_{step:08d}", "tokenizer_sha256": "cd" * 32, "time": 1000.0 + step, "context": 32,
        "stride": 32, "text": {"name": "<i>t</i>", "sha256": "ab" * 32, "bytes": 9}, "results": {"bpb": 1.5},
    }  # fmt: skip
    return Kept(entry.run, {**told, **record})


def test_the_same_evaluation_twice_is_one_row_and_the_latest(entry: Entry) -> None:
    again = [kept(entry, 10), kept(entry, 10, time=5.0), kept(entry, 10, stride=8), kept(entry, 10, weights_sha256="x")]
    found = evaluate_kept.distinct(again)
    assert [(k.time, k.record["stride"]) for k in found] == [(1010.0, 32), (1010.0, 8), (1010.0, 32)]


def test_a_row_marks_the_checkpoint_and_says_when_it_is_gone(entry: Entry) -> None:
    assert "gone" in str(evaluate_kept.row(kept(entry, 10), entry)[1])
    assert evaluate_kept.is_of(kept(entry, 10), entry)
    assert not evaluate_kept.is_of(kept(entry, 20), entry)


def test_a_heading_has_name_hash_and_part_as_text(entry: Entry) -> None:
    said = str(evaluate_kept.heading([kept(entry, 10, max_tokens=500)]))
    assert "&lt;i&gt;t&lt;/i&gt;" in said
    assert "sha abababab" in said
    assert "at most 500 tokens" in said


# ---------------------------------------------------------------- what trainers found
def automatic(run: Run, step: int, bpb: float, text: str = "a", whole: bool = False) -> Kept:
    return Kept(run, {
        "checkpoint": f"step_{step:08d}", "time": 1.0, "text": {"name": "austen", "sha256": text}, "automatic": 50,
        "max_tokens": None if whole else 512, "results": {"bpb": bpb, "loss": 2.0, "tokens": 512},
    })  # fmt: skip


def test_courses_are_of_one_text_the_picked_run_first_with_their_best(entry: Entry, runs_dir: Path) -> None:
    other, elsewhere = (make_run(runs_dir, name, step=20) for name in ("a", "b"))
    found = [
        automatic(other, 50, 1.9), automatic(elsewhere, 50, 1.0, "b"), automatic(entry.run, 50, 1.8),
        automatic(entry.run, 100, 1.7), automatic(entry.run, 150, 1.75), automatic(entry.run, 150, 1.76, whole=True),
    ]  # fmt: skip
    own, second = evaluate_automatic.courses(found, entry)
    assert (own.run.id, second.run.id) == ("one", "a")
    assert (own.best.step, own.all[-1].step, own.whole) == (100, 150, found[-1])
    assert second.whole is None
    cells = evaluate_automatic.row(own, entry)
    assert ">this<" in str(cells[1])
    assert cells[2:6] == ("50", "512", "1.7500", "150")
    assert cells[8:] == ("1.7600", "150")
    figure = evaluate_automatic.chart(LIGHT, [own, second])
    assert [list(trace.x) for trace in figure.data] == [[50], [50, 100, 150], [150]]
    assert not evaluate_automatic.courses(found[:2], entry)


def test_a_run_that_was_only_judged_at_its_end_has_a_course_too(entry: Entry) -> None:
    (course,) = evaluate_automatic.courses([automatic(entry.run, 150, 1.76, whole=True)], entry)
    assert course.best.step == 150
    assert list(evaluate_automatic.chart(LIGHT, [course]).data[0].y) == [1.76]
