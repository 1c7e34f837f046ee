"""`dgsgpt serve`: trained models for clients of OpenAI's interface. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path

import click

from dgsgpt.cli_options import runs_dir_option


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; others than loopback need a key."
)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free port.")
@click.option(
    "--api-key",
    envvar="DGSGPT_API_KEY",
    help="Answer only requests with this key (default: $DGSGPT_API_KEY, which other users of the machine cannot see).",
)
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@runs_dir_option
def serve(root: Path, checkpoints: tuple[str, ...], host: str, port: int, api_key: str | None, device: str) -> None:
    """Serve each CHECKPOINT (RUN, RUN@STEP or a directory) to programs that speak OpenAI's interface.

    They are given http://HOST:PORT/v1 as base URL and RUN@STEP as model. Completions and chat, streamed or whole. One
    line a request is logged, without its text. Ctrl-C ends it.
    """
    import logging

    from dgsgpt import console
    from dgsgpt.api.server import ApiServer, check_key, listen, open_engines

    key = check_key(api_key)
    sock, local = listen(host, port, key)  # before the models are opened, which takes longer
    with sock:
        with console.progress() as report:
            engines = open_engines(checkpoints, root, device, report)
        logging.basicConfig(format="%(asctime)s  %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
        logging.getLogger("dgsgpt.api").setLevel(logging.INFO)
        address, bound = sock.getsockname()[:2]
        for engine in engines:
            click.echo(f"model {ascii(engine.served.id)[1:-1]}")
        click.echo(f"listening on http://{f'[{address}]' if ':' in address else address}:{bound}/v1")
        ApiServer(engines, local=local, api_key=key).run([sock])


COMMANDS = (serve,)
