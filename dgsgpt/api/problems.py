"""What goes wrong in a request, in the form that clients of OpenAI's interface expect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from dgsgpt.errors import DgsgptError


class ApiError(DgsgptError):
    """A request that cannot be answered; `status` is the HTTP status, `param` the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """The `type` of the error: whose fault it is."""
        if self.status == 401:
            return "authentication_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def to_dict(self) -> dict[str, Any]:
        """The error object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer to the request; ASCII, since it quotes what clients send, half surrogate pairs included."""
        return Response(json.dumps(self.to_dict()), self.status, self.headers, "application/json")


class DisconnectError(Exception):
    """The client closed the connection; nobody waits for the answer any more."""


def busy(model: str, places: int) -> ApiError:
    """The queue of a model is full."""
    message = f"{model} writes already and {places} requests wait for it; try again in a moment"
    return ApiError(503, message, code="busy", headers={"Retry-After": "1"})


def shutting_down() -> ApiError:
    """The server ends."""
    return ApiError(503, "the server is shutting down; start it again with `dgsgpt serve`", code="shutting_down")


def unknown_model(model: str, known: list[str]) -> ApiError:
    """The model asked for is none of those served."""
    message = f"model {model[:100]!r} is not served here; known are {', '.join(known)}"
    return ApiError(404, message, param="model", code="model_not_found")


__all__ = ["ApiError", "DisconnectError", "busy", "shutting_down", "unknown_model"]
