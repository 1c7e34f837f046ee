"""Opening checkpoints and listening."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from dgsgpt.api.app import build_app
from dgsgpt.api.engine import Engine, Served
from dgsgpt.checkpoint import CheckpointInfo, describe, find_checkpoint, load_checkpoint
from dgsgpt.errors import CheckpointError, DgsgptError

_BACKLOG = 128
_GRACE_S = 5
_LATEST = 253402300799  # the last second of the year 9999


def open_engines(
    references: Sequence[str], root: Path, device: str, progress: Callable[[str, float], None]
) -> list[Engine]:
    """Verify and open checkpoints; each is served as RUN@STEP.

    Raises:
        CheckpointError: one is missing or damaged, or two would have one name.
        DgsgptError: the device cannot be used, or memory does not suffice.
    """
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise DgsgptError("--device cuda: torch finds no GPU it can use (see `dgsgpt doctor`); leave --device out")
    found: dict[str, CheckpointInfo] = {}
    for reference in references:
        info = describe(find_checkpoint(reference, root))
        name = f"{info.run_id}@{info.step}"
        if name in found:
            raise CheckpointError(f"{found[name].path} and {info.path} are both {name}; give one of them")
        found[name] = info
    engines = []
    for done, (name, info) in enumerate(found.items()):
        progress(f"opening {name}", done / len(found))
        try:
            opened = load_checkpoint(info.path, device)
        except (MemoryError, torch.OutOfMemoryError):
            raise DgsgptError(f"{info.path}: not enough memory for this model; serve fewer or smaller ones") from None
        engines.append(Engine(Served(name, opened, int(min(max(0.0, info.saved_at), _LATEST)))))
    return engines


def listen(host: str, port: int, api_key: str | None) -> tuple[socket.socket, bool]:
    """A socket that listens, and whether only this machine can reach it.

    Raises:
        DgsgptError: the address cannot be used, or others could reach it without a key.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise DgsgptError(f"--host {host!r} is not an address of this machine; use 127.0.0.1") from None
    local = ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback
    if not local and api_key is None:
        raise DgsgptError(
            f"--host {host} lets other machines in; set a key in $DGSGPT_API_KEY (or --api-key), or use 127.0.0.1"
        )
    try:
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG), local
    except OSError as e:
        raise DgsgptError(f"{host}:{port} cannot be used: {e.strerror}; choose another --port or --host") from None


def check_key(key: str | None) -> str | None:
    """A key that a header can carry.

    Raises:
        DgsgptError: it is empty, or has spaces or letters that headers do not carry.
    """
    if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
        raise DgsgptError("--api-key must be printable ASCII without spaces and not empty; choose another")
    return key


class ApiServer(uvicorn.Server):
    """A server that ends its generations when it is asked to end, and then ends with exit code 0."""

    def __init__(self, engines: Sequence[Engine], *, local: bool = True, api_key: str | None = None) -> None:
        self.engines = list(engines)
        super().__init__(
            uvicorn.Config(
                build_app(engines, local=local, api_key=api_key),
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop what is being written, then wait for the answers to go out."""
        for engine in self.engines:
            engine.close()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End; at the second signal without waiting. Uvicorn's own would die by the signal in the end."""
        self.force_exit = self.should_exit
        self.should_exit = True


__all__ = ["ApiServer", "check_key", "listen", "open_engines"]
