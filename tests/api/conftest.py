"""Engines of tiny models, asked in this process or through a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from dgsgpt.api.app import build_app
from dgsgpt.api.engine import Engine, Served
from dgsgpt.api.server import ApiServer, listen
from dgsgpt.checkpoint import Checkpoint, load_checkpoint
from dgsgpt.runs import create_run
from tests import checkpoint_factory, run_factory


def open_tiny(root: Path, characters: str | None = None) -> Checkpoint:
    """A checkpoint whose model does not just repeat its last token, as fresh ones do."""
    run = create_run(root, run_factory.config(), "tiny")
    checkpoint = load_checkpoint(checkpoint_factory.save(run, 5, characters))
    torch.manual_seed(1)
    with torch.no_grad():
        for p in checkpoint.model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return checkpoint


@pytest.fixture
def checkpoint(runs_dir: Path) -> Checkpoint:
    return open_tiny(runs_dir)


@pytest.fixture
def engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    engine = Engine(Served("tiny@5", checkpoint, 1_700_000_000), max_waiting=2)
    yield engine
    engine.close()


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    with TestClient(build_app([engine]), base_url="http://127.0.0.1") as client:
        yield client


def ask(client: TestClient, path: str = "completions", **fields: Any) -> Any:
    body = json.dumps({"model": "tiny@5", **fields})  # ASCII: half a surrogate pair arrives as it is
    return client.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})


def refused(response: Any, status: int = 400) -> dict[str, Any]:
    """The error object of a refusal: one line, as clients expect it."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].isprintable()
    assert len(error["message"]) < 500
    return error


def wait_until(true: Callable[[], bool], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@dataclass
class Live:
    """A server in a thread of this process, on a real port."""

    port: int
    engine: Engine
    server: ApiServer


@pytest.fixture
def live(engine: Engine) -> Iterator[Live]:
    sock, local = listen("127.0.0.1", 0, None)
    server = ApiServer([engine], local=local)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Live(sock.getsockname()[1], engine, server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
