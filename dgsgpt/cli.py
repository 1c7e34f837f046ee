"""The command line. Every command the dashboard has; heavy imports happen inside the commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgsgpt import __version__, catalog_commands, exchange_commands, queue_command, serve_command, use_commands
from dgsgpt.bench_command import bench
from dgsgpt.calibrate_command import calibrate
from dgsgpt.cli_options import json_option, print_json, runs_dir_option, set_option
from dgsgpt.compare_command import compare
from dgsgpt.dry_run_command import dry_run
from dgsgpt.errors import DgsgptError
from dgsgpt.format import printable
from dgsgpt.goals_command import goals
from dgsgpt.inspect_command import inspect
from dgsgpt.metrics_command import metrics
from dgsgpt.plan_command import plan
from dgsgpt.quantize_command import quantize
from dgsgpt.report_command import report

if TYPE_CHECKING:
    from dgsgpt.runs import Run


class _Group(click.Group):
    """Commands in the order written; a user's error is one line on stderr and exit code 2."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DgsgptError as e:
            click.echo(f"error: {printable(str(e))}", err=True)
            ctx.exit(2)
        except BrokenPipeError:  # the reader of a pipe has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dgsgpt")
def main() -> None:
    """Train GPT models from scratch on your own machine.

    Begin with `dgsgpt dashboard --demo`, or with `dgsgpt train configs/demo.yaml`.
    """


# ---------------------------------------------------------------- dashboard
@main.command()
@click.option("--port", default=8501, show_default=True, type=click.IntRange(1, 65535), help="Port on 127.0.0.1.")
@click.option(
    "--demo", is_flag=True, help="With no runs yet, start a small demo run so that there is something to watch."
)
@click.option(
    "--open/--no-open", "open_browser", default=None, help="Open a browser (default: when there is a screen)."
)
@runs_dir_option
def dashboard(root: Path, port: int, demo: bool, open_browser: bool | None) -> None:
    """Serve the dashboard on this machine's own address."""
    from dgsgpt.serve import serve_dashboard

    serve_dashboard(root, port=port, demo=demo, open_browser=open_browser)


# ---------------------------------------------------------------- training
queue_option = click.option("--queue", is_flag=True, help="Start it after the runs before it; see `dgsgpt queue`.")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "origin",
    metavar="CHECKPOINT",
    help="Begin with the weights, network and tokenizer of RUN, RUN@STEP or a directory; the rest is CONFIG's.",
)
@set_option
@click.option("--run-id", help="Name of the run (default: made from the config).")
@click.option("--detach", is_flag=True, help="Start in the background and return.")
@queue_option
@json_option
@runs_dir_option
def train(
    root: Path, config: Path, origin: str | None, overrides: tuple[str, ...], run_id: str | None, detach: bool,
    queue: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train the model that the YAML file CONFIG describes, or fine-tune another one by its recipe."""
    from dgsgpt.branch import base_config, begin_from
    from dgsgpt.checkpoint import find_checkpoint
    from dgsgpt.config import load_config
    from dgsgpt.data.prepare import resolve
    from dgsgpt.runs import create_run

    given = ["--from", origin] if origin is not None else []
    command = ["dgsgpt", "train", str(config), *given, *(word for o in overrides for word in ("--set", o))]
    if origin is None:
        run = create_run(root, resolve(load_config(config, overrides)), run_id, command)
    else:
        path = find_checkpoint(origin, root)
        run = begin_from(root, path, resolve(base_config(path, load_config(config), overrides)), run_id, command)
    _go(run, detach, as_json, queue)


@main.command()
@click.argument("checkpoint")
@set_option
@click.option("--run-id", help="Name of the run (default: made from that of the checkpoint).")
@click.option("--detach", is_flag=True, help="Start in the background and return.")
@queue_option
@json_option
@runs_dir_option
def fork(
    root: Path, checkpoint: str, overrides: tuple[str, ...], run_id: str | None, detach: bool, queue: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Go on from CHECKPOINT (RUN, RUN@STEP or a directory) in a new run, optimizer and all, with settings changed."""
    from dgsgpt import branch
    from dgsgpt.checkpoint import find_checkpoint

    path = find_checkpoint(checkpoint, root)
    command = ["dgsgpt", "fork", checkpoint, *(word for o in overrides for word in ("--set", o))]
    _go(branch.fork(root, path, branch.fork_config(path, overrides), run_id, command), detach, as_json, queue)


@main.command()
@click.argument("run")
@click.option("--detach", is_flag=True, help="Go on in the background and return.")
@set_option
@click.option("--force", is_flag=True, help="Go on although config, data or tokenizer are not as they were.")
@json_option
@runs_dir_option
def resume(root: Path, run: str, detach: bool, overrides: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Go on with RUN from its newest valid checkpoint, or at once if it is paused.

    --set changes the recipe from there on, e.g. --set train.steps=2000 for more steps.
    """
    from dgsgpt import console, launch
    from dgsgpt.runs import open_run

    found = open_run(root, run)
    if found.status().paused:
        launch.continue_run(found)
        print_json(console.run_summary(found)) if as_json else click.echo(f"{found.id} goes on")
        return
    _go(launch.change_recipe(found, overrides, force), detach, as_json)


def _go(run: Any, detach: bool, as_json: bool, queue: bool = False) -> None:
    from dgsgpt import console, launch

    if queue:
        from dgsgpt.run_queue import enqueue

        place = enqueue(run)
        if not as_json:
            click.echo(f"{run.id} is number {place} in the queue; `dgsgpt queue` shows it")
        code = 0
    elif detach:
        launch.start_run(run)
        if not as_json:
            click.echo(
                f"{run.id} runs in the background: watch it in the dashboard, end it with `dgsgpt stop {run.id}`"
            )
        code = 0
    else:
        code = console.follow(run, quiet=as_json)
    if as_json:
        print_json(console.run_summary(run))
    sys.exit(code)


@main.command()
@click.argument("run")
@click.option("--wait/--no-wait", default=True, help="Wait until it has saved and ended.")
@click.option("--force", is_flag=True, help="Kill it at once; steps since the last checkpoint are lost.")
@json_option
@runs_dir_option
def stop(root: Path, run: str, wait: bool, force: bool, as_json: bool) -> None:
    """Let RUN finish its step, save and end."""
    from dgsgpt import console, launch
    from dgsgpt.runs import open_run

    found = open_run(root, run)
    if force:
        launch.kill_run(found)
    else:
        launch.stop_run(found)
    if wait:
        launch.wait_run(found, timeout_s=None)
    if as_json:
        print_json(console.run_summary(found))
    else:
        status = found.status()
        click.echo(
            f"{found.id}: {status.state}, step {status.step} of {status.max_steps}"
            + (f" ({status.message})" if status.message else "")
        )


@main.command()
@click.argument("run")
@json_option
@runs_dir_option
def pause(root: Path, run: str, as_json: bool) -> None:
    """Let RUN finish its step, save and wait, keeping its memory; `dgsgpt resume` lets it go on."""
    from dgsgpt.launch import pause_run

    _request(root, run, pause_run, "pauses after its step", as_json)


@main.command()
@click.argument("run")
@json_option
@runs_dir_option
def save(root: Path, run: str, as_json: bool) -> None:
    """Let RUN save a checkpoint after its step and go on."""
    from dgsgpt.launch import save_now

    _request(root, run, save_now, "saves after its step", as_json)


def _request(root: Path, run: str, ask: Callable[[Run], None], answer: str, as_json: bool) -> None:
    """Ask something of a live run, and say what it will do."""
    from dgsgpt import console
    from dgsgpt.runs import open_run

    found = open_run(root, run)
    ask(found)
    print_json(console.run_summary(found)) if as_json else click.echo(f"{found.id} {answer}")


@main.command()
@click.option("--all", "archived_too", is_flag=True, help="Also archived ones (--json always has them).")
@json_option
@runs_dir_option
def runs(root: Path, archived_too: bool, as_json: bool) -> None:
    """List runs, the newest first."""
    from dgsgpt import annotations, console
    from dgsgpt.runs import list_runs

    here = list_runs(root)
    if not archived_too and not as_json:
        here = [run for run in here if not annotations.read(run).run.archived]
    found = [console.run_summary(r) for r in here]
    if as_json:
        print_json(found)
    elif not found:
        click.echo(f"no runs in {root} yet; start one with `dgsgpt train configs/demo.yaml`")
    else:
        console.print_table(
            ["run", "state", "step", "val loss"], [[s["run_id"], s["state"], s["step"], s["loss/val"]] for s in found]
        )


@main.command()
@click.argument("run", required=False)
@json_option
@runs_dir_option
def checkpoints(root: Path, run: str | None, as_json: bool) -> None:
    """List checkpoints of RUN, or of all runs."""
    from dgsgpt import console
    from dgsgpt.annotations import of_checkpoints
    from dgsgpt.checkpoint import list_checkpoints
    from dgsgpt.runs import open_run

    found = list_checkpoints(open_run(root, run) if run else root)
    if as_json:
        said = of_checkpoints(c.path for c in found)
        rows = ({"path": str(c.path), "problem": c.problem, "annotation": said[c.path].to_dict()} for c in found)
        print_json([{**row, **c.metadata} for row, c in zip(rows, found, strict=True)])
    elif not found:
        click.echo("no checkpoints yet")
    else:
        console.print_checkpoints(found)


# ---------------------------------------------------------------- data
@main.command()
@click.argument("corpus")
@click.option(
    "--tokenizer", "kind", default="bpe", show_default=True, type=click.Choice(["bpe", "char", "byte", "gpt2"])
)
@click.option("--vocab-size", default=4096, show_default=True, help="Vocabulary that bpe learns.")
@click.option("--val-fraction", default=0.1, show_default=True, help="Share kept for validation, from the end.")
@json_option
def prepare(corpus: str, kind: str, vocab_size: int, val_fraction: float, as_json: bool) -> None:
    """Turn CORPUS (austen, plays or a text file) into token files."""
    from dgsgpt import console
    from dgsgpt.config import build_config
    from dgsgpt.data.prepare import prepare as prepare_data

    given = {"corpus": corpus, "tokenizer": {"kind": kind, "vocab_size": vocab_size}, "val_fraction": val_fraction}
    data = build_config({"data": given}, "prepare").data
    with console.progress(quiet=as_json) as report:
        dataset = prepare_data(data, block_size=1, progress=report)
    if as_json:
        print_json({"id": dataset.id, "path": str(dataset.path), **dataset.meta})
    else:
        console.print_dataset(dataset)


# ---------------------------------------------------------------- commands in files of their own
for _command in (
    *catalog_commands.COMMANDS,
    *exchange_commands.COMMANDS,
    *use_commands.COMMANDS,
    *serve_command.COMMANDS,
    *queue_command.COMMANDS,
    compare,
    quantize,
    metrics,
    report,
    bench,
    calibrate,
    dry_run,
    goals,
    plan,
    inspect,
):
    main.add_command(_command)


@main.command()
@json_option
@runs_dir_option
def doctor(root: Path, as_json: bool) -> None:
    """Say what this machine offers and what is missing."""
    from dgsgpt import console

    report = console.diagnose(root)
    if as_json:
        print_json(report)
    else:
        for key, value in report.items():
            click.echo(f"{key:14}{value}")


if __name__ == "__main__":
    main()
