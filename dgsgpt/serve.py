"""Starting the dashboard's server on this machine's own address."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from dgsgpt.errors import RunError
from dgsgpt.threads import wait_politely


def home_script() -> Path:
    """`Home.py`: inside a wheel it lies in the package, in a checkout beside it."""
    package = Path(__file__).parent
    packed = package / "_app" / "Home.py"
    return packed if packed.is_file() else package.parent / "Home.py"


def has_screen() -> bool:
    """Whether opening a browser makes sense here."""
    on_desktop = sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    return on_desktop and sys.stdout.isatty()


def check_port(port: int) -> None:
    """Raise RunError when another program listens on the port."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError as e:
            raise RunError(
                f"port {port} on 127.0.0.1 cannot be used: {e.strerror}; choose another with --port"
            ) from None


def serve_dashboard(root: Path, port: int, demo: bool, open_browser: bool | None) -> None:
    """Become the dashboard's server; with `demo` and no runs in `root`, start the demo run first."""
    from dgsgpt.launch import start_demo
    from dgsgpt.runs import list_runs

    check_port(port)
    if demo and not list_runs(root):
        run = start_demo(root, automatic=True)
        print(
            f"No runs yet: started {run.id}, about a minute of training on Jane Austen. End it with `dgsgpt stop "
            f"{run.id}`."
        )
    os.environ["DGSGPT_RUNS"] = str(root)
    wait_politely(os.environ)
    show = has_screen() if open_browser is None else open_browser
    print(f"Dashboard: http://127.0.0.1:{port}", flush=True)
    # Become streamlit instead of calling it: its own config file beside Home.py is then honoured, as are signals.
    arguments = [sys.executable, "-m", "streamlit", "run", str(home_script()), "--server.port", str(port)]
    options = ["--server.headless", "false" if show else "true", "--server.showEmailPrompt", "false"]
    os.execv(sys.executable, arguments + options)
