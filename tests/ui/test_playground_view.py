"""Writing into an output that survives being interrupted, and showing text that is never markup."""

from __future__ import annotations

import html
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.runs import Run
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui import playground_view as view
from tests.checkpoint_factory import flip_a_bit, save, save_filled, save_script
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


def test_a_model_that_gives_no_numbers_is_one_line(run: Run) -> None:
    save_filled(run, 10, math.nan)
    made = output()
    view.write(entry_of(run), made, lambda: None)
    assert made.problem == "the model gave logits that are not numbers; its weights are damaged or training diverged"


def test_a_scripted_model_writes_its_text_token_by_token(run: Run) -> None:
    save_script(run, 10, "![a](http://x/y) 日本")
    made = output("?", max_new_tokens=len("![a](http://x/y) 日本".encode()))
    view.write(entry_of(run), made, lambda: None)
    assert made.text == "![a](http://x/y) 日本"


def test_more_likeliest_tokens_than_the_vocabulary_has_are_all(run: Run) -> None:
    save(run, 10, characters="abc")
    texts = []
    for top_k in (500, None):
        made = output(temperature=1.0, top_k=top_k)
        view.write(entry_of(run), made, lambda: None)
        assert made.problem is None
        texts.append(made.text)
    assert texts[0] == texts[1]


def test_control_tokens_in_a_prompt_are_its_letters(run: Run) -> None:
    from dgsgpt.data.bpe import BpeTokenizer

    tokenizer = BpeTokenizer([])
    assert tokenizer.end_of_text not in tokenizer.encode("<|endoftext|>")
    save(run, 10)
    made = output("<|endoftext|>")
    view.write(entry_of(run), made, lambda: None)
    assert made.stats is not None
    assert made.stats.prompt_tokens == len("<|endoftext|>")
    assert "&lt;|endoftext|&gt;" in view.text_html(made.prompt, made.text)


# ---------------------------------------------------------------- going on
def written(run: Run, **settings: Any) -> view.Output:
    made = output(temperature=1.0, **settings)
    view.write(entry_of(run), made, lambda: None)
    view.look(entry_of(run), made, lambda: None)
    return made


def test_what_is_continued_is_what_a_longer_generation_writes(run: Run) -> None:
    save(run, 10)
    short, long = written(run, max_new_tokens=12), written(run, max_new_tokens=50)
    more = view.continued(short, {**long.settings, "seed": 99, "max_new_tokens": 38})
    assert more.text == short.text  # until the first token is there
    view.write(entry_of(run), more, lambda: None)
    assert more.text == long.text
    assert more.stats is not None
    assert long.stats is not None
    assert more.stats.ids == long.stats.ids
    assert more.stats.nats == pytest.approx(long.stats.nats, rel=1e-4)
    assert more.stats.tokens == 38  # what the speed is of
    assert more.settings["seed"] == 1
    assert more.before is short
    assert view.unread(more)


def test_a_branch_keeps_the_text_before_and_takes_the_alternative(run: Run) -> None:
    from dgsgpt.generation.text import whole_text

    save(run, 10)
    first = written(run)
    assert first.stats is not None
    assert first.choices is not None
    at = 5
    token, share = next(pair for pair in first.choices[at].likeliest if pair[0] != first.stats.ids[at])
    branched = view.branched(first, at, token, "so far", {**GREEDY, "temperature": 1.0})
    assert branched is not None
    view.write(entry_of(run), branched, lambda: None)
    assert branched.stats is not None
    assert branched.stats.ids[: at + 1] == [*first.stats.ids[:at], token]
    assert branched.stats.nats[:at] == first.stats.nats[:at]
    assert branched.stats.nats[at] == pytest.approx(-math.log(share))
    assert branched.text.startswith(whole_text(bytes(branched.stats.ids[: at + 1])))
    assert branched.before is first
    view.look(entry_of(run), branched, lambda: None)
    assert branched.choices is not None
    assert [choice.nats for choice in branched.choices] == pytest.approx(branched.stats.nats, rel=1e-3)


@pytest.mark.parametrize(("at", "token"), [(-1, 0), (12, 0), (10**9, 0), (3, 10**9), (3, -1)])
def test_what_was_no_alternative_is_no_branch(run: Run, at: int, token: int) -> None:
    save(run, 10)
    assert view.branched(written(run), at, token, "", dict(GREEDY)) is None


def test_only_so_many_texts_can_be_gone_back_to(run: Run) -> None:
    save(run, 10)
    made = written(run)
    for _ in range(50):
        made = view.continued(made, dict(GREEDY))
    depth, one = 0, made
    while one.before is not None:
        depth, one = depth + 1, one.before
    assert depth == 20


def test_looking_that_stop_ended_is_not_begun_again_and_a_failed_one_neither(run: Run) -> None:
    path = save(run, 10)
    made = output()
    view.write(entry_of(run), made, lambda: None)
    assert view.unread(made)
    made.looking = True  # as an interruption leaves it
    view.give_up([made])
    assert not view.unread(made)
    again, entry = output(), entry_of(run)
    view.write(entry, again, lambda: None)
    shutil.rmtree(path)
    view.look(entry, again, lambda: None)
    assert not view.unread(again)
    assert again.problem is None  # the text is there


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


def test_of_a_long_prompt_the_end_is_shown() -> None:
    shown = view.shown_prompt("a" * 1_000_000 + "b")
    assert shown.endswith("ab")
    assert len(shown) <= view.SHOWN_PROMPT + 2
    assert view.shown_prompt("short") == "short"


def test_the_headline_tells_the_mean_log_probability() -> None:
    from dgsgpt.generation import Stats

    made = output()
    assert made.headline() == ""
    made.stats = Stats(2, 0, 1, tokens=4, seconds=2.0, first_token_s=0.024, ids=[1, 2, 3, 4], nats=[1.0, 2.0, 3.0, 3.0])
    assert made.headline() == "2 tok/s · first 24\u00a0ms · −2.25 nats/token"
