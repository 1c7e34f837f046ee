"""What every request passes: the name it was sent to, its key, and a line in the log.

On a loopback address a page of another site could reach us through the browser, under a name that its owner lets point
here (DNS rebinding): so only names of this very machine are answered. No header ever allows another origin (CORS).
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import time
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgsgpt.api.problems import ApiError

if TYPE_CHECKING:
    from dgsgpt.api.engine import Job

JOB = "dgsgpt.job"  # where a handler leaves the job of a request
_log = logging.getLogger("dgsgpt.api")


class Guard:
    """Refuses requests under foreign names (`local`) or without the key, and logs one line each, without the text.

    Whatever ends a request (its answer, an error, a client that leaves) ends its job.
    """

    def __init__(self, app: ASGIApp, *, local: bool, api_key: str | None) -> None:
        self._app, self._local = app, local
        self._key = api_key.encode("ascii") if api_key is not None else None

    async def __call__(  # noqa: D102 - the interface of ASGI
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        begun = time.perf_counter()
        try:
            self._check(Headers(scope=scope))
            await self._app(scope, receive, watched)
        except ApiError as e:
            await e.response()(scope, receive, watched)
        finally:
            if JOB in scope:
                scope[JOB].abandon()
            _log.info("%s", _line(scope, status, time.perf_counter() - begun))

    def _check(self, headers: Headers) -> None:
        if self._local and not is_local_name(_host_of(headers.get("host", ""))):
            raise ApiError(
                403,
                f"Host {headers.get('host', '')[:100]!r} is no name of this machine; use 127.0.0.1 or localhost",
                code="host_not_allowed",
            )
        if self._key is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # In constant time, or the time taken would tell how much of a guess is right.
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._key)
        if scheme.lower() != "bearer" or not right:
            raise ApiError(
                401,
                "the API key is missing or wrong; send `Authorization: Bearer KEY` with the key of this server",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _host_of(header: str) -> str:
    """The name in a Host header, without the port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


def is_local_name(name: str) -> bool:
    """Whether a host name can only mean this machine: localhost, or a loopback address."""
    if name.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _line(scope: Scope, status: int, seconds: float) -> str:
    # The path is the client's word: only a printable, short form of it goes to a terminal.
    parts = [scope["method"], ascii(scope["path"][:80])[1:-1], str(status or "no answer"), f"{seconds:.2f} s"]
    job: Job | None = scope.get(JOB)
    if job is not None:
        tally = job.tally
        parts += [job.order.model, f"{tally.prompt_tokens} + {tally.completion_tokens} tokens"]
        parts += [f"{tally.tokens_per_s:.1f} tokens/s"] if tally.stats else []
        parts += ["the client left"] if job.abandoned else []
    return "  ".join(parts)


__all__ = ["JOB", "Guard", "is_local_name"]
