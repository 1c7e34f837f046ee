"""Bad requests: each is answered in one line with the right status, and the server goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from dgsgpt.api.app import MAX_BODY_BYTES, build_app
from dgsgpt.api.engine import Engine, Served
from dgsgpt.api.guard import is_local_name
from tests.api.conftest import ask, open_tiny, refused


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One for all: a refusal changes nothing."""
    engine = Engine(Served("tiny@5", open_tiny(tmp_path_factory.mktemp("runs")), 0))
    yield engine
    engine.close()


USER = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "prompt is missing"),
        ({"prompt": []}, "prompt="),
        ({"prompt": 5}, "prompt="),
        ({"prompt": [1, "a"]}, "prompt="),
        ({"prompt": [True]}, "prompt="),
        ({"prompt": [1, 256]}, "256"),
        ({"prompt": [-1]}, "-1"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "\ud800"}, "'\\ud800'"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens=0"),
        ({"prompt": "x", "max_tokens": 1_000_001}, "max_tokens=1000001 must be less than or equal to 1000000"),
        ({"prompt": "x", "max_tokens": "5"}, "max_tokens='5'"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens=True"),
        ({"prompt": "x", "temperature": -1}, "temperature=-1"),
        ({"prompt": "x", "temperature": "hot"}, "temperature='hot'"),
        ({"prompt": "x", "top_p": 0}, "top_p=0"),
        ({"prompt": "x", "top_k": 0}, "top_k=0"),
        ({"prompt": "x", "n": 17}, "n=17"),
        ({"prompt": ["x"] * 33, "n": 2}, "ask for fewer"),
        ({"prompt": "x", "seed": -1}, "seed=-1"),
        ({"prompt": "x", "seed": 2**63}, "seed="),
        ({"prompt": "x", "stop": ["a", "b", "c", "d", "e"]}, "stop="),
        ({"prompt": "x", "stop": ""}, "stop=''"),
        ({"prompt": "x", "stop": "y" * 257}, "at most 256 characters"),
        ({"prompt": "x", "logprobs": 6}, "logprobs=6"),
        ({"prompt": "x", "best_of": 3}, "best_of=3"),
        ({"prompt": "x", "stream": "yes"}, "stream='yes'"),
        ({"prompt": "x", "stream_options": {"include": 1}}, "stream_options"),
        ({"prompt": "x", "presence_penalty": 0.5}, "presence_penalty=0.5 is not offered"),
        ({"prompt": "x", "frequency_penalty": False}, "frequency_penalty=False"),
        ({"prompt": "x", "logit_bias": {"5": 100}}, "logit_bias="),
        ({"prompt": "x", "suffix": "end"}, "suffix='end'"),
        ({"prompt": "x", "min_p": 0.1}, "'min_p' is not a field we know"),
        ({"prompt": "x", "temprature": 0.1}, "did you mean temperature"),
        ({"prompt": "x", "a\n\x1b[31m" * 500: 1}, "is not a field we know"),
        ({"prompt": "x", "\ud800": 1}, "'\\ud800' is not a field we know"),
        ({"prompt": "x", "model": 5}, "model=5"),
    ],
)
def test_fields_of_completions(client: TestClient, fields: dict[str, Any], said: str) -> None:
    error = refused(ask(client, **fields))
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"
    assert ask(client, prompt="x", max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "messages is missing"),
        ({"messages": []}, "messages="),
        ({"messages": "Hi"}, "messages="),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role='tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content="),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        ({"messages": USER, "tools": [{"type": "function"}]}, "tools="),
        ({"messages": USER, "response_format": {"type": "json_object"}}, "response_format="),
        ({"messages": USER, "logprobs": True}, "logprobs=True"),
        ({"messages": USER, "echo": True}, "'echo'"),
    ],
)
def test_fields_of_chat(client: TestClient, fields: dict[str, Any], said: str) -> None:
    assert said in refused(ask(client, "chat/completions", **fields))["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"5", b"null", b'"x"', b"\xff\xfe",
        b'{"model": "tiny@5", "prompt": "x", "temperature": NaN}',
        b'{"model": "tiny@5", "prompt": "x", "top_p": -Infinity}',
        b'{"model": "tiny@5", "prompt": "x", "top_p": 1e999}',
        b'{"model": "tiny@5", "prompt": "x", "seed": ' + b"9" * 5000 + b"}", b"[" * 100_000,
        b'{"model":' * 50_000,
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_bodies_that_are_no_request(client: TestClient, body: bytes) -> None:
    refused(client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"}))


def test_a_huge_body_is_refused_and_a_million_characters_are_not(client: TestClient) -> None:
    error = refused(ask(client, prompt="x" * (MAX_BODY_BYTES + 1)), 413)
    assert f"{MAX_BODY_BYTES:,}" in error["message"]
    begun = time.monotonic()
    answer = ask(client, prompt="x" * 1_000_000, max_tokens=2, n=3)
    assert answer.json()["usage"]["prompt_tokens"] == 1_000_000
    assert time.monotonic() - begun < 10


def test_a_form_of_another_site_is_refused(client: TestClient) -> None:
    body = json.dumps({"model": "tiny@5", "prompt": "x"}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        error = refused(client.post("/v1/completions", content=body, headers={"Content-Type": kind}), 415)
        assert "application/json" in error["message"]


def test_no_other_origin_is_allowed(client: TestClient) -> None:
    origin = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    refused(client.options("/v1/completions", headers=origin), 405)
    for answer in (client.options("/v1/models", headers=origin), client.get("/v1/models", headers=origin)):
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_unknown_addresses_and_models(client: TestClient) -> None:
    assert refused(ask(client, prompt="x", model="gpt-4"), 404)["message"].endswith("known are tiny@5")
    assert "/v1/completions" in refused(client.get("/v1/embeddings"), 404)["message"]
    refused(client.get("/v1/completions"), 405)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "", "[::2]"]
)
def test_foreign_names_are_refused_on_loopback(engine: Engine, host: str) -> None:
    client = TestClient(build_app([engine]), base_url="http://127.0.0.1")
    error = refused(client.get("/v1/models", headers={"Host": host}), 403)
    assert error["code"] == "host_not_allowed"
    elsewhere = TestClient(build_app([engine], local=False, api_key="k"), base_url="http://127.0.0.1")
    assert elsewhere.get("/v1/models", headers={"Host": host, "Authorization": "Bearer k"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "127.1.2.3", "[::1]:8000", "localhost."]
)
def test_names_of_this_machine_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_what_a_local_name_is() -> None:
    assert is_local_name("::1")
    assert not is_local_name("0.0.0.0")
    assert not is_local_name("2130706433")


@pytest.mark.parametrize(
    "given", [None, "Bearer", "Bearer wrong", "Bearer secret2", "Basic secret", "secret", "Bearer s\xe9cret"]
)
def test_a_wrong_key(engine: Engine, given: str | None) -> None:
    client = TestClient(build_app([engine], api_key="secret"), base_url="http://127.0.0.1")
    headers = {"Authorization": given.encode("latin-1")} if given is not None else {}
    for path in ("/v1/models", "/v1/nothing"):
        error = refused(client.get(path, headers=headers), 401)
        assert error["code"] == "invalid_api_key"
        assert "secret" not in error["message"]
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
