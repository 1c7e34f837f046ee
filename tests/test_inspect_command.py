"""`dgsgpt inspect`: what the playground shows, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from dgsgpt.checkpoint import load_checkpoint
from dgsgpt.cli import main
from dgsgpt.inspect.attention import look_at_attention
from dgsgpt.inspect.routing import look_at_routing
from dgsgpt.inspect.surprise import surprise
from dgsgpt.runs import create_run
from tests.checkpoint_factory import save
from tests.run_factory import config, make_run

TEXT = "It was so — \x1b[2J"


@pytest.fixture
def dense(runs_dir: Path) -> Path:
    return save(make_run(runs_dir, "one", step=20), 10)


@pytest.fixture
def sparse(runs_dir: Path) -> Path:
    return save(create_run(runs_dir, config(moe=True), "experts"), 10)


def dgsgpt(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "\x1b" not in result.output  # a text must not steer the terminal
    return result


def as_json(*arguments: object) -> Any:
    return json.loads(dgsgpt(*arguments, "--json").stdout)


def test_surprise_of_a_text_or_a_file_is_what_the_function_gives(dense: Path, tmp_path: Path) -> None:
    opened = load_checkpoint(dense)
    told = as_json("inspect", "one@10", "--text", TEXT)
    assert told == json.loads(json.dumps(surprise(opened.model, opened.tokenizer, TEXT).to_dict()))
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    assert as_json("inspect", dense, "--file", file) == told
    printed = dgsgpt("inspect", "one", "--text", TEXT, "--top", 3).stdout
    assert f"{told['loss']:.4f}" in printed
    assert len(printed.splitlines()) == 2 + 1 + 3


def test_the_difference_of_two_is_that_of_their_figures(dense: Path, sparse: Path) -> None:
    told = as_json("inspect", "one", "--text", TEXT, "--against", "experts")
    assert told["a"] == as_json("inspect", "one", "--text", TEXT)
    assert told["b"] == as_json("inspect", "experts", "--text", TEXT)
    assert "".join(one["text"] for one in told["pairs"]) == TEXT
    for letter in "ab":
        nats = [one[f"nats_{letter}"] for one in told["pairs"]]
        assert sum(cost for cost in nats if cost is not None) == pytest.approx(told[letter]["nats"])
    printed = dgsgpt("inspect", "one", "--text", TEXT, "--against", "experts", "--top", 2).stdout
    assert len(printed.splitlines()) == 3 + 1 + 3


def test_of_a_huge_text_it_is_said_what_was_judged(dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dgsgpt.inspect.surprise as module

    monkeypatch.setattr(module.surprise, "__kwdefaults__", {"max_tokens": 20, "likeliest": 2})
    assert "of 90 characters the first 20 were judged" in dgsgpt("inspect", "one", "--text", "ab " * 30).stderr


def test_attention_of_a_layer_is_what_the_function_gives(dense: Path) -> None:
    opened = load_checkpoint(dense)
    ids = opened.tokenizer.encode(TEXT)
    told = as_json("inspect", "one", "--text", TEXT, "--what", "attention", "--layer", 0, "--last", 5)
    assert told == json.loads(json.dumps(look_at_attention(opened.model, opened.tokenizer, ids, 0, 5).to_dict()))
    assert as_json("inspect", "one", "--text", TEXT, "--what", "attention")["layer"] == 1
    printed = dgsgpt("inspect", "one", "--text", "x" * 50, "--what", "attention", "--last", 5)
    assert "layer 1, global: where the last token, “x”, looks" in printed.stdout
    assert "before these" in printed.stdout
    assert "first 18 tokens do not fit the context of 32" in printed.stderr


def test_routing_is_what_the_function_gives(sparse: Path) -> None:
    opened = load_checkpoint(sparse)
    ids = opened.tokenizer.encode(TEXT)
    told = as_json("inspect", "experts", "--text", TEXT, "--what", "routing")
    assert told == json.loads(json.dumps(look_at_routing(opened.model, opened.tokenizer, ids, 48).to_dict()))
    one = as_json("inspect", "experts", "--text", TEXT, "--what", "routing", "--layer", 1)
    assert one["layers"] == told["layers"][1:]
    assert (
        "each token passes 2 of 4 experts" in dgsgpt("inspect", "experts", "--text", TEXT, "--what", "routing").stdout
    )
    lines = dgsgpt("inspect", "experts", "--text", TEXT, "--what", "routing", "--layer", 0, "--last", 4).stdout
    assert len(lines.splitlines()) == 2 + 4


def test_a_dense_model_has_no_routing_and_says_so(dense: Path) -> None:
    assert "nothing is routed" in dgsgpt("inspect", "one", "--text", TEXT, "--what", "routing").stdout
    assert as_json("inspect", "one", "--text", TEXT, "--what", "routing")["layers"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", ""], "is empty"),
        (["--text", "abz"], "'z'"),
        (["--text", "", "--what", "attention"], "is empty"),
        (["--text", "ab", "--what", "attention", "--layer", "2"], "layer 2 must be 0 to 1"),
        (["--text", "ab", "--what", "routing", "--layer", "7"], "layer 7 has no experts; layers with experts: 0, 1"),
        (["--text", "ab", "--layer", "0"], "--layer and --last are for"),
        (["--text", "ab", "--what", "routing", "--against", "experts"], "--against is for --what surprise"),
        ([], "give either --text TEXT or --file FILE"),
        (["--file", "none.txt"], "no such text"),
    ],
)
def test_what_cannot_be_done_is_one_line(runs_dir: Path, arguments: list[str], message: str) -> None:
    save(create_run(runs_dir, config(moe=True), "experts"), 10, characters="abc")
    assert message in dgsgpt("inspect", "experts", *arguments, code=2).stderr
