"""The routes: models, completions, chat completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dgsgpt.api.answers import Answer, ChatAnswer, CompletionAnswer, model_object, server_event
from dgsgpt.api.engine import Engine, Job
from dgsgpt.api.guard import JOB, Guard
from dgsgpt.api.problems import ApiError, DisconnectError, unknown_model
from dgsgpt.api.schema import Order, chat_order, completion_order

MAX_BODY_BYTES = 1 << 20
# A client sees our refusal only once it has sent its body: up to here we let it.
_MAX_DRAINED_BYTES = 32 << 20
_BODY_TIMEOUT_S = 30.0
_CLOSED = 499  # nobody reads the answer; the number is for the log


def build_app(engines: Sequence[Engine], *, local: bool = True, api_key: str | None = None) -> Starlette:
    """The application that serves `engines`; `local` where it listens on a loopback address."""
    by_id = {engine.served.id: engine for engine in engines}
    routes = [
        Route("/v1/models", _list_models, methods=["GET"]),
        Route("/v1/models/{model:path}", _one_model, methods=["GET"]),
        Route("/v1/completions", _writer(completion_order, CompletionAnswer), methods=["POST"]),
        Route("/v1/chat/completions", _writer(chat_order, ChatAnswer), methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, local=local, api_key=api_key)],
        exception_handlers={ApiError: _refuse, HTTPException: _refuse_http, Exception: _fail},
    )
    app.state.engines = by_id
    return app


# ---------------------------------------------------------------- models
async def _list_models(request: Request) -> Response:
    engines: dict[str, Engine] = request.app.state.engines
    return JSONResponse({"object": "list", "data": [model_object(engine.served) for engine in engines.values()]})


async def _one_model(request: Request) -> Response:
    return JSONResponse(model_object(_engine(request, request.path_params["model"]).served))


def _engine(request: Request, model: str) -> Engine:
    engines: dict[str, Engine] = request.app.state.engines
    if model not in engines:
        raise unknown_model(model, list(engines))
    return engines[model]


# ---------------------------------------------------------------- writing
def _writer(read: Callable[[Any], Order], kind: type[Answer]) -> Callable[[Request], Any]:
    """The handler of a route that writes text."""

    async def handle(request: Request) -> Response:
        try:
            order = read(await _json(request))
            job = _engine(request, order.model).submit(order)
            request.scope[JOB] = job  # from here on the guard sees to its end
            answer = kind(order, job.tally)
            if not order.stream:
                return JSONResponse(await _while_connected(request, _collect(job, answer)))
            events = job.events()
            # What is wrong with the order is answered before the stream begins, with a status of its own.
            await _while_connected(request, anext(events))
        except (ClientDisconnect, DisconnectError):
            return Response(status_code=_CLOSED)
        headers = {"Cache-Control": "no-cache"}
        return StreamingResponse(_chunks(events, answer), media_type="text/event-stream", headers=headers)

    return handle


async def _collect(job: Job, answer: Answer) -> dict[str, Any]:
    async for event in job.events():
        answer.add(event)
    return answer.whole()


async def _chunks(events: AsyncIterator[Any], answer: Answer) -> AsyncIterator[bytes]:
    try:
        async for event in events:
            for chunk in answer.chunks(event):
                yield server_event(chunk)
    except ApiError as e:  # the status has been sent: clients look for this object in the stream
        yield server_event(e.to_dict())
        return
    for chunk in answer.last_chunks():
        yield server_event(chunk)
    yield server_event("[DONE]")


async def _while_connected(request: Request, work: Any) -> Any:
    """The result of `work`.

    Raises:
        DisconnectError: the client closed the connection first.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DisconnectError
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# ---------------------------------------------------------------- requests
async def _json(request: Request) -> Any:
    """The body.

    Raises:
        ApiError: it is too large, too slow, not declared as JSON, or not JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # also what keeps pages of other sites from sending: browsers ask us first
        raise ApiError(415, f"Content-Type {kind[:80]!r} must be application/json; send that header")
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            body = await _body(request)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive in {_BODY_TIMEOUT_S:.0f} s; send it at once") from None
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as e:
        reason = "too deeply nested" if isinstance(e, RecursionError) else str(e)[:200]
        raise ApiError(400, f"the body is not JSON: {reason}; send one JSON object", code="invalid_json") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


async def _body(request: Request) -> bytes:
    size, parts = 0, []
    async for part in request.stream():
        size += len(part)
        if size > _MAX_DRAINED_BYTES:
            break
        if size <= MAX_BODY_BYTES:
            parts.append(part)
        else:
            parts.clear()
    if size > MAX_BODY_BYTES:
        raise ApiError(413, f"the body is over the limit of {MAX_BODY_BYTES:,} bytes; send less text", code="too_large")
    return b"".join(parts)


# ---------------------------------------------------------------- refusals
async def _refuse(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, ApiError), "registered for it alone"
    return problem.response()


async def _refuse_http(request: Request, problem: Exception) -> Response:
    assert isinstance(problem, HTTPException), "registered for it alone"
    known = "GET /v1/models, POST /v1/completions and POST /v1/chat/completions"
    message = f"{problem.detail}: {request.method[:10]} {request.url.path[:100]!r}; there are {known}"
    return ApiError(problem.status_code, message, headers=problem.headers).response()


async def _fail(request: Request, problem: Exception) -> Response:
    """A bug of ours: the client is told that much, the traceback goes to the log."""
    return ApiError(500, f"{type(problem).__name__} in the server; its log says more").response()


__all__ = ["MAX_BODY_BYTES", "build_app"]
