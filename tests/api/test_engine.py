"""One at a time, a bounded queue, and clients that leave: over a real socket."""

from __future__ import annotations

import gc
import json
import logging
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dgsgpt.checkpoint import Checkpoint
from tests.api.conftest import Live, wait_until

FOREVER = 1_000_000  # minutes even for a tiny model: whatever ends sooner was stopped


def request(port: int, **fields: Any) -> socket.socket:
    """A connection on which a completion has been asked for."""
    body = json.dumps({"model": "tiny@5", "prompt": "It was", "seed": 1, **fields}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        part = connection.recv(65536)
        assert part, data
        data += part
    return data


@contextmanager
def watched_caches(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many caches of keys and values are alive; without the garbage collector, which would come too late."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    make = checkpoint.model.make_cache

    def made(*arguments: Any, **options: Any) -> Any:
        cache = make(*arguments, **options)
        alive.add(cache)
        return cache

    monkeypatch.setattr(checkpoint.model, "make_cache", made)
    gc.disable()
    try:
        yield lambda: len(alive)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "fields", [{"stream": True}, {"stream": True, "logprobs": 2, "max_tokens": 100_000}, {}], ids=str
)
def test_a_client_that_leaves_ends_its_generation(
    live: Live, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fields: Any
) -> None:
    caplog.set_level(logging.INFO, "dgsgpt.api")
    with watched_caches(checkpoint, monkeypatch) as caches:
        connection = request(live.port, **{"max_tokens": FOREVER, **fields})
        if fields:
            read_until(connection, b"data: ")
        else:
            wait_until(lambda: caches() > 0)
        assert not live.engine.idle
        connection.close()
        wait_until(lambda: live.engine.idle, 30)
        wait_until(lambda: caches() == 0, 30)
    # Of another request the line may still be on its way when this one begins.
    wait_until(lambda: any("the client left" in line for line in caplog.messages))
    (line,) = [line for line in caplog.messages if "the client left" in line]
    assert "tiny@5" in line
    with request(live.port, max_tokens=2) as again:
        assert b"200 OK" in read_until(again, b"}")


def test_a_client_leaves_while_the_model_writes_nothing_to_show(
    live: Live, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.tokenizer, "token_bytes", lambda token: b"")  # as of special tokens
    connection = request(live.port, max_tokens=FOREVER, stream=True)
    wait_until(lambda: not live.engine.idle)
    connection.close()
    wait_until(lambda: live.engine.idle, 30)
    assert live.engine.idle


def test_one_at_a_time_and_no_more_wait_than_may(live: Live) -> None:
    first = request(live.port, max_tokens=FOREVER, stream=True)
    read_until(first, b"data: ")
    waiting = [request(live.port, max_tokens=3, stream=True) for _ in range(2)]
    wait_until(lambda: len(live.engine._jobs) == 3)
    with request(live.port, max_tokens=3) as refused:
        answer = read_until(refused, b"}}")
    assert b"503" in answer.splitlines()[0]
    assert b"retry-after: 1" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "busy"
    waiting[0].close()  # one that waits gives its place back
    wait_until(lambda: len(live.engine._jobs) == 2)
    waiting.append(request(live.port, max_tokens=3, stream=True))
    wait_until(lambda: len(live.engine._jobs) == 3)
    first.close()
    for connection in waiting[1:]:
        assert b'"finish_reason": "length"' in read_until(connection, b"[DONE]")
        connection.close()
    wait_until(lambda: live.engine.idle)


def test_closing_ends_streams_with_an_error_and_refuses_more(live: Live) -> None:
    stream = request(live.port, max_tokens=FOREVER, stream=True)
    read_until(stream, b"data: ")
    waits = request(live.port, max_tokens=3)
    wait_until(lambda: len(live.engine._jobs) == 2)
    live.engine.close()
    assert b'"code": "shutting_down"' in read_until(stream, b"shutting_down")
    assert b"503" in read_until(waits, b"}}").splitlines()[0]
    with request(live.port, max_tokens=3) as later:
        assert b"503" in read_until(later, b"}}").splitlines()[0]
    stream.close()
    waits.close()


def test_a_bug_in_the_thread_is_answered_and_the_thread_goes_on(
    live: Live, monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("secret words")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.model, "make_cache", broken)
        with request(live.port, max_tokens=3) as connection:
            answer = read_until(connection, b"}}")
    assert b"500" in answer.splitlines()[0]
    assert b"ZeroDivisionError" in answer
    assert b"secret" not in answer
    with request(live.port, max_tokens=3) as again:
        assert b"200 OK" in read_until(again, b"}")


def test_the_log_has_a_line_a_request_without_its_text(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dgsgpt.api")
    with request(live.port, prompt="private words", max_tokens=3) as connection:
        read_until(connection, b'"usage"')
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(b"GET /%1b%5b31m%0aline HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_until(connection, b"}}")
    wait_until(lambda: len(caplog.messages) == 2)
    first, second = caplog.messages
    assert "POST  /v1/completions  200" in first
    assert "13 + 3 tokens" in first
    assert "tokens/s" in first
    assert "private" not in first
    assert second.isprintable()
    assert "GET  /\\x1b[31m\\nline  404" in second


def test_a_slow_reader_does_not_keep_the_model_from_others(live: Live) -> None:
    # Far more than the buffers on the way hold.
    slow = request(live.port, prompt="x" * 900_000, echo=True, max_tokens=1, stream=True, n=12)
    slow.settimeout(30)
    done = threading.Event()

    def other() -> None:
        with request(live.port, max_tokens=1) as connection:
            connection.settimeout(60)
            read_until(connection, b'"usage"')
            done.set()

    thread = threading.Thread(target=other)
    thread.start()
    thread.join(60)
    assert done.is_set()  # although nothing of the first answer has been read
    assert b"[DONE]" in read_until(slow, b"[DONE]")
    slow.close()
