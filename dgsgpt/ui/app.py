"""Where the app's files are, and what its server adds to Streamlit's: one script route and safety headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import plotly
from starlette.middleware import Middleware
from starlette.responses import FileResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgsgpt.ui.live_chart import PLOTLY_ROUTE

PACKAGE = Path(__file__).resolve().parents[1]
ROUTER = PACKAGE / "ui" / "router.py"
ASSETS = PACKAGE / "ui" / "assets"
# As the menu shows them.
PAGES = ("home", "data", "configure", "train", "runs", "checkpoints", "playground", "evaluate")

# Images only from this server: a run's name or a model's text cannot make the browser call elsewhere.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' ws: wss:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
)


class ServerOptions(TypedDict):
    """What Home.py hands to `st.App`."""

    routes: list[Any]
    middleware: list[Any]


def app_root() -> Path:
    """The folder with Home.py and pages/: inside an installed package, else the top of the checkout."""
    bundled = PACKAGE / "_app"
    return bundled if (bundled / "Home.py").is_file() else PACKAGE.parent


def page_file(name: str) -> Path:
    """The script of one page, e.g. `page_file("train")`, for `st.switch_page` and `st.page_link`."""
    return app_root() / "pages" / f"{name}.py"


async def _plotly_script(_request: object) -> FileResponse:
    path = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    return FileResponse(path, media_type="text/javascript", headers={"Cache-Control": "public, max-age=86400"})


class SafetyHeaders:
    """Adds the safety headers to every HTTP answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADERS]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


def server_options() -> ServerOptions:
    """The route and middleware of the dashboard's server."""
    return {"routes": [Route(PLOTLY_ROUTE, _plotly_script)], "middleware": [Middleware(SafetyHeaders)]}
