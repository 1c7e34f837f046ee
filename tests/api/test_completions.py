"""Completions and chat: what is written is what `generate` writes, in the shape that clients expect."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from dgsgpt.api.app import build_app
from dgsgpt.api.engine import Engine, Served
from dgsgpt.api.schema import CHAT_STOP, chat_prompt
from dgsgpt.checkpoint import Checkpoint
from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.generation import generate, stream
from tests.api.conftest import ask, open_tiny, refused


def events(response: Any) -> list[Any]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def written(checkpoint: Checkpoint, prompt: str, **sampling: Any) -> str:
    sampling = {"max_new_tokens": 20, "temperature": 1.0, "seed": 7, **sampling}
    return generate(checkpoint.model, checkpoint.tokenizer, prompt, **sampling)


def test_a_completion_is_what_generate_writes(client: TestClient, checkpoint: Checkpoint) -> None:
    answer = ask(client, prompt="It was", max_tokens=20, seed=7, user="me").json()
    expected = written(checkpoint, "It was")
    assert expected
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny@5"
    assert answer["usage"] == {"prompt_tokens": 6, "completion_tokens": 20, "total_tokens": 26}
    assert answer["choices"] == [
        {"index": 0, "text": expected, "logprobs": None, "finish_reason": "length", "seed": 7, "cropped_tokens": 0}
    ]


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({"temperature": 0}, {"temperature": 0}),
        ({"top_k": 3, "temperature": 0.5}, {"top_k": 3, "temperature": 0.5}),
        ({"top_p": 0.4}, {"top_p": 0.4}),
        ({"temperature": None, "presence_penalty": 0, "logit_bias": {}, "best_of": 1}, {}),
    ],
)
def test_the_rules_of_sampling_arrive(
    client: TestClient, checkpoint: Checkpoint, asked: dict[str, Any], sampling: dict[str, Any]
) -> None:
    text = ask(client, prompt="It was", max_tokens=20, **{"seed": 7, **asked}).json()["choices"][0]["text"]
    assert text == written(checkpoint, "It was", **sampling)


def test_every_choice_of_every_prompt_is_what_its_seed_gives_alone(client: TestClient, checkpoint: Checkpoint) -> None:
    answer = ask(client, prompt=["It was", "She"], n=2, max_tokens=20, seed=7).json()
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2, 3]
    assert [c["seed"] for c in answer["choices"]] == [7, 8, 7, 8]
    expected = [written(checkpoint, prompt, seed=seed) for prompt in ("It was", "She") for seed in (7, 8)]
    assert [c["text"] for c in answer["choices"]] == expected
    assert len(set(expected)) == 4
    assert answer["usage"]["prompt_tokens"] == 9
    assert answer["usage"]["completion_tokens"] == 80


@pytest.mark.parametrize("prompt", [[72, 105], [[72, 105]]])
def test_a_prompt_may_be_token_ids(client: TestClient, checkpoint: Checkpoint, prompt: Any) -> None:
    choice = ask(client, prompt=prompt, max_tokens=5, seed=7, echo=True).json()["choices"][0]
    assert choice["text"] == "Hi" + written(checkpoint, "Hi", max_new_tokens=5)


def test_without_a_seed_the_one_drawn_is_told_and_gives_the_text_again(client: TestClient) -> None:
    first = ask(client, prompt="It was", max_tokens=20).json()["choices"][0]
    again = ask(client, prompt="It was", max_tokens=20, seed=first["seed"]).json()["choices"][0]
    assert again == first


def test_a_stop_text_ends_it(client: TestClient, checkpoint: Checkpoint) -> None:
    text = written(checkpoint, "It was", max_new_tokens=200)
    stop = text[40:42]
    choice = ask(client, prompt="It was", max_tokens=200, seed=7, stop=["\0\0\0", stop]).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == text[: text.index(stop)]
    assert ask(client, prompt="It was", max_tokens=200, seed=7, stop=stop).json()["choices"][0] == choice


def test_a_prompt_beyond_the_context_is_cropped_and_said(client: TestClient) -> None:
    answer = ask(client, prompt="x" * 100, max_tokens=2, seed=1).json()
    assert answer["choices"][0]["cropped_tokens"] == 100 - 31
    assert answer["usage"]["prompt_tokens"] == 100


def test_a_stream_is_the_whole_answer_in_pieces(client: TestClient) -> None:
    fields = {"prompt": ["It was", "She"], "n": 2, "max_tokens": 20, "seed": 7, "logprobs": 1}
    whole = ask(client, **fields).json()
    chunks = events(ask(client, **fields, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    for choice in whole["choices"]:
        parts = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert len(parts) > 10
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [token for part in parts if part["logprobs"] for token in part["logprobs"]["tokens"]] == (
            choice["logprobs"]["tokens"]
        )
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        assert all(part["finish_reason"] is None for part in parts[:-1])


# ---------------------------------------------------------------- figures
def exact(checkpoint: Checkpoint, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [T, V] of the token after each of `ids`, in one pass."""
    with torch.inference_mode():
        logits = checkpoint.model(torch.tensor([ids])).logits
    return torch.log_softmax(logits[0].double(), -1)


def test_logprobs_are_the_models_own(client: TestClient, checkpoint: Checkpoint) -> None:
    asked = {"prompt": "It was", "max_tokens": 10, "seed": 7, "top_k": 5, "temperature": 0.7, "logprobs": 3}
    told = ask(client, **asked).json()["choices"][0]["logprobs"]
    pieces = stream(
        checkpoint.model, checkpoint.tokenizer, "It was", max_new_tokens=10, seed=7, top_k=5, temperature=0.7
    )
    text = "".join(pieces)
    ids = [*b"It was", *pieces.stats.ids]
    logs = exact(checkpoint, ids)[5:]
    given = len(told["tokens"])  # a character cut at the end is not shown
    assert given >= 7
    for place in range(given):
        token, top = ids[6 + place], told["top_logprobs"][place]
        assert told["token_logprobs"][place] == pytest.approx(float(logs[place, token]), abs=1e-5)
        assert top[told["tokens"][place]] == told["token_logprobs"][place]
        likeliest = sorted(logs[place].topk(3).values.tolist())
        assert sorted(top.values())[-3:] == pytest.approx(likeliest, abs=1e-5)
        assert 3 <= len(top) <= 4
        assert 0 <= told["text_offset"][place] < len(text)


def test_echo_without_new_tokens_judges_the_prompt(client: TestClient, checkpoint: Checkpoint) -> None:
    prompt = "It was a truth éù"
    choice = ask(client, prompt=prompt, max_tokens=0, echo=True, logprobs=2).json()["choices"][0]
    ids = list(prompt.encode())
    logs = exact(checkpoint, ids)
    assert choice["text"] == prompt
    assert choice["finish_reason"] == "length"
    told = choice["logprobs"]
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:] == pytest.approx(
        [float(logs[i, token]) for i, token in enumerate(ids[1:])], abs=1e-5
    )
    assert told["tokens"][:3] == ["I", "t", " "]
    assert told["tokens"][-4:] == [r"bytes:\xc3", r"bytes:\xa9", r"bytes:\xc3", r"bytes:\xb9"]
    assert told["text_offset"] == [*range(15), 15, 15, 16, 16]


def test_logprobs_are_bounded(client: TestClient) -> None:
    told = ask(client, prompt="x" * 31, max_tokens=1, echo=True, logprobs=0, seed=3).json()["choices"][0]["logprobs"]
    assert all(len(top) == 1 for top in told["top_logprobs"][1:])
    error = refused(ask(client, prompt=["x", "x" * 32], max_tokens=0, echo=True, logprobs=0))
    assert "32 tokens; at most 31" in error["message"]
    assert "150,000" in refused(ask(client, prompt=["x", "y", "z"], max_tokens=50_000, logprobs=0))["message"]


def test_a_token_that_begins_every_text_is_read_once(checkpoint: Checkpoint) -> None:
    class Beginning(ByteTokenizer):
        begin_of_text = 2

    engine = Engine(Served("tiny@5", dataclasses.replace(checkpoint, tokenizer=Beginning()), 0))
    with TestClient(build_app([engine]), base_url="http://localhost") as client:
        asked = {"max_tokens": 8, "seed": 4, "echo": True, "logprobs": 1}
        given, left_out, text = (ask(client, prompt=p, **asked).json() for p in ([2, 72, 105], [72, 105], "Hi"))
    engine.close()
    assert given["choices"] == left_out["choices"] == text["choices"]
    assert given["usage"]["prompt_tokens"] == 3
    first = given["choices"][0]["logprobs"]["token_logprobs"][0]
    assert first == pytest.approx(float(exact(checkpoint, [2])[0, 72]), abs=1e-5)


def test_a_token_that_ends_a_text_is_not_shown(checkpoint: Checkpoint) -> None:
    class Ending(ByteTokenizer):
        ends_of_text = tuple(range(128))

    engine = Engine(Served("tiny@5", dataclasses.replace(checkpoint, tokenizer=Ending()), 0))
    with TestClient(build_app([engine]), base_url="http://localhost") as client:
        answer = ask(client, prompt="Hi", max_tokens=500, seed=4, logprobs=1).json()
    engine.close()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < 500
    assert not any(character < "\x80" for character in choice["text"])


# ---------------------------------------------------------------- chat
def test_the_template() -> None:
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Ho"), ("user", "And?")]
    assert chat_prompt(turns) == "System: Be kind.\nUser: Hi\nAssistant: Ho\nUser: And?\nAssistant:"


def test_a_reply_is_the_template_continued(client: TestClient, checkpoint: Checkpoint) -> None:
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    answer = ask(client, "chat/completions", messages=messages, max_completion_tokens=20, seed=7, tools=[]).json()
    expected = written(checkpoint, "System: x\nUser: Hi\nAssistant:", stop=CHAT_STOP).removeprefix(" ")
    assert answer["object"] == "chat.completion"
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": expected, "refusal": None}
    assert choice["finish_reason"] == "length"
    chunks = events(
        ask(client, "chat/completions", messages=messages, max_completion_tokens=20, seed=7, stream=True, n=1)
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[-1] == {}
    assert "".join(delta["content"] for delta in deltas[:-1]) == expected
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


# ---------------------------------------------------------------- models, other tokenizers
def test_models_are_listed_and_say_how_they_chat(client: TestClient) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    assert (model["id"], model["object"], model["created"]) == ("tiny@5", "model", 1_700_000_000)
    assert "base model" in model["description"]
    assert client.get("/v1/models/tiny@5").json() == model
    assert refused(client.get("/v1/models/none"), 404)["code"] == "model_not_found"


def test_characters_the_model_does_not_know_are_listed(runs_dir: Path) -> None:
    engine = Engine(Served("tiny@5", open_tiny(runs_dir, "abc"), 0))
    with TestClient(build_app([engine]), base_url="http://localhost") as client:
        assert ask(client, prompt="abcab", max_tokens=3, seed=1).json()["usage"]["prompt_tokens"] == 5
        for stream_it in (False, True):
            error = refused(ask(client, prompt="abxcy", stream=stream_it))
            assert "'x', 'y'" in error["message"]
            assert error["param"] == "prompt"
    engine.close()


def test_weights_that_are_no_numbers_are_the_servers_fault(client: TestClient, checkpoint: Checkpoint) -> None:
    with torch.no_grad():
        next(checkpoint.model.parameters()).fill_(math.nan)
    assert refused(ask(client, prompt="x"), 500)["type"] == "server_error"
    text = ask(client, prompt="x", stream=True).text  # the status has been sent by then
    assert json.loads(text.removeprefix("data: "))["error"]["type"] == "server_error"
    assert "[DONE]" not in text
