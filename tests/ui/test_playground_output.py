"""What is said of two texts of one prompt, and the name of a text's file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dgsgpt.generation import Stats
from dgsgpt.runs import Run
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui import playground_output as cards
from dgsgpt.ui.playground_view import Output
from tests.checkpoint_factory import save
from tests.run_factory import make_run


@pytest.fixture
def entries(runs_dir: Path) -> list[table.Entry]:
    """Two checkpoints with one tokenizer, and one with another."""
    run: Run = make_run(runs_dir, "one", step=20)
    save(run, 10)
    save(run, 20)
    save(run, 30, characters="abc")
    return sorted(table.entries([run]), key=lambda entry: entry.step or 0)


def output(ids: list[int], seed: int = 1, prompt: str = "a") -> Output:
    stats = Stats(1, 0, seed, tokens=len(ids), ids=ids, nats=[1.0] * len(ids))
    return Output("one@10", "one", "#112233", prompt, {"seed": seed}, stats=stats)


def test_the_first_difference_is_counted_from_one(entries: list[table.Entry]) -> None:
    two = entries[:2]
    assert cards.relation([output([1, 2, 3]), output([1, 2, 4])], two) == (
        "same seed, shared noise: first difference at token 3",
        2,
    )
    assert cards.relation([output([1, 2]), output([1, 2])], two) == ("same seed, shared noise: no difference", None)


def test_texts_that_do_not_share_their_noise_are_not_compared(entries: list[table.Entry]) -> None:
    said, at = cards.relation([output([1]), output([2])], [entries[0], entries[2]])
    assert "other tokenizers" in said
    assert at is None
    assert cards.relation([output([1], seed=1), output([2], seed=2)], entries[:2]) == ("", None)
    assert cards.relation([output([1], prompt="b"), output([2])], entries[:2]) == ("", None)
    assert cards.relation([output([1]), output([])], entries[:2]) == ("", None)
    assert cards.relation([output([1])], entries[:1]) == ("", None)


@pytest.mark.parametrize("ref", ["one@10", "../x y@10", "Ünï@1"])
def test_a_file_name_is_one(ref: str) -> None:
    made = output([1], seed=42)
    made.ref = ref
    assert re.fullmatch(r"[A-Za-z0-9._-]+-step-\d+-seed-42\.txt", cards.file_name(made))
