"""`dgsgpt serve` as a process, talked to with the official client."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from click.testing import CliRunner

from dgsgpt.api.schema import CHAT_STOP
from dgsgpt.checkpoint import load_checkpoint
from dgsgpt.cli import main
from dgsgpt.generation import generate
from dgsgpt.runs import create_run
from dgsgpt.serve_command import serve
from tests import checkpoint_factory, run_factory
from tests.api.conftest import wait_until

KEY = "a-key-for-tests"


@dataclass
class Served:
    """A server process, its address, and what it has written."""

    process: subprocess.Popen[str]
    url: str
    paths: list[Path]
    errors: list[str] = field(default_factory=list)


def start(root: Path, *arguments: str, **environment: str) -> Served:
    command = [sys.executable, "-m", "dgsgpt.cli", "serve", *arguments, "--port", "0", "--runs-dir", str(root)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"listening on (\S+)", line):
            server = Served(process, found[1], [])
            threading.Thread(target=_drain, args=(server,), daemon=True).start()
            return server
    _, errors = process.communicate(timeout=10)
    pytest.fail(f"the server did not start:\n{said}{errors}")


def _drain(server: Served) -> None:
    assert server.process.stderr is not None
    server.errors.extend(server.process.stderr)


def end(server: Served) -> None:
    server.process.kill()
    server.process.wait(10)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    run = create_run(root, run_factory.config(), "tiny")
    paths = [checkpoint_factory.save(run, step) for step in (5, 9)]
    server = start(root, "tiny@5", str(paths[1]), DGSGPT_API_KEY=KEY)
    server.paths = paths
    yield server
    end(server)


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def expected(path: Path, prompt: str, **sampling: Any) -> str:
    checkpoint = load_checkpoint(path)
    return generate(checkpoint.model, checkpoint.tokenizer, prompt, temperature=1.0, **sampling)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny@5", "tiny@9"]
    assert client.models.retrieve("tiny@9").owned_by == "dgsgpt"


def test_completions_whole_and_streamed(client: openai.OpenAI, served: Served) -> None:
    for model, path in zip(("tiny@5", "tiny@9"), served.paths, strict=True):
        asked: dict[str, Any] = {"model": model, "prompt": "It was", "max_tokens": 40, "seed": 3}
        text = expected(path, "It was", max_new_tokens=40, seed=3)
        whole = client.completions.create(**asked, extra_body={"top_k": 256}, user="someone")
        assert whole.choices[0].text == text
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage is not None
        assert whole.usage.total_tokens == 46
        assert client.completions.create(**asked).choices[0].text == text
        chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.text for chunk in chunks for c in chunk.choices) == text
        assert len(chunks) > 10
        assert chunks[-1].usage == whole.usage


def test_chat_whole_and_streamed(client: openai.OpenAI, served: Served) -> None:
    asked: dict[str, Any] = {"model": "tiny@5", "max_tokens": 30, "seed": 3}
    asked["messages"] = [{"role": "system", "content": "Short."}, {"role": "user", "content": "Hello"}]
    prompt = "System: Short.\nUser: Hello\nAssistant:"
    text = expected(served.paths[0], prompt, max_new_tokens=30, seed=3, stop=CHAT_STOP).removeprefix(" ")
    assert client.chat.completions.create(**asked).choices[0].message.content == text
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_errors_are_those_of_the_client(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError, match="known are tiny@5, tiny@9"):
        client.completions.create(model="tiny@6", prompt="x")
    with pytest.raises(openai.BadRequestError, match="the prompt is empty") as bad:
        client.completions.create(model="tiny@5", prompt="", stream=True)
    assert bad.value.param == "prompt"
    with pytest.raises(openai.BadRequestError, match="presence_penalty"):
        client.chat.completions.create(model="tiny@5", messages=[{"role": "user", "content": "x"}], presence_penalty=1)
    with pytest.raises(openai.APIStatusError, match="over the limit") as large:
        client.completions.create(model="tiny@5", prompt="x" * 2_000_000)
    assert large.value.status_code == 413
    with (
        openai.OpenAI(base_url=served.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="API key"),
    ):
        stranger.models.list()
    with pytest.raises(openai.PermissionDeniedError, match="is no name of this machine"):
        client.with_options(default_headers={"Host": "evil.example"}).models.list()


def test_a_client_that_stops_reading_a_stream_ends_it(client: openai.OpenAI, served: Served) -> None:
    process = psutil.Process(served.process.pid)
    with client.completions.create(model="tiny@5", prompt="x", max_tokens=1_000_000, stream=True) as stream:
        next(iter(stream))
    wait_until(lambda: any("the client left" in line for line in served.errors))
    before = process.cpu_times().user
    assert not wait_idle(process)
    assert process.cpu_times().user - before < 0.4


def wait_idle(process: psutil.Process) -> bool:
    """Whether the process ends within half a second."""
    try:
        process.wait(0.5)
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_in_the_middle_of_a_stream(tmp_path: Path, sig: signal.Signals) -> None:
    checkpoint_factory.save(create_run(tmp_path, run_factory.config(), "tiny"), 5)
    server = start(tmp_path, "tiny")
    try:
        with openai.OpenAI(base_url=server.url, api_key="any", max_retries=0) as client:
            stream = iter(client.completions.create(model="tiny@5", prompt="x", max_tokens=1_000_000, stream=True))
            next(stream)
            server.process.send_signal(sig)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(stream)
        assert server.process.wait(10) == 0
        wait_until(lambda: any("tokens/s" in line for line in server.errors))
        assert not any("Traceback" in line for line in server.errors)
        assert KEY not in "".join(server.errors)
    finally:
        end(server)


# ---------------------------------------------------------------- the command line
def refusal(*arguments: str, **environment: str | None) -> str:
    result = CliRunner().invoke(main, ["serve", *arguments], env=environment)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_address_needs_a_key(tmp_path: Path, host: str) -> None:
    assert "DGSGPT_API_KEY" in refusal("tiny", "--host", host, "--port", "0", "--runs-dir", str(tmp_path))
    # With one it goes on, to the next thing that is wrong.
    given = ("tiny", "--host", host, "--port", "0", "--runs-dir", str(tmp_path))
    assert "no checkpoint" in refusal(*given, DGSGPT_API_KEY="key")


def test_what_cannot_be_served(tmp_path: Path, served: Served) -> None:
    here = ("--runs-dir", str(tmp_path))
    port = served.url.rpartition(":")[2].removesuffix("/v1")
    assert "choose another --port" in refusal("tiny", "--port", port, *here)
    assert "not an address" in refusal("tiny", "--host", "no.such.host.invalid", *here)
    assert "printable ASCII" in refusal("tiny", "--api-key", "", *here)
    assert "printable ASCII" in refusal("tiny", "--api-key", "clé", *here)
    assert "no checkpoint 'tiny'" in refusal("tiny", "--port", "0", *here)
    run = create_run(tmp_path, run_factory.config(), "tiny")
    path = checkpoint_factory.save(run, 5)
    assert "both tiny@5" in refusal("tiny", str(path), "--port", "0", *here)
    assert "both tiny@5" in refusal("tiny", "tiny", "--port", "0", *here)
    checkpoint_factory.flip_a_bit(path)
    assert "model.safetensors" in refusal("tiny", "--port", "0", *here)


def test_its_help_names_the_address_to_give() -> None:
    result = CliRunner().invoke(serve, ["--help"])
    assert "http://HOST:PORT/v1" in result.output
    assert "DGSGPT_API_KEY" in result.output
