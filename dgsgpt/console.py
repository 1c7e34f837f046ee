"""What the command line prints: progress bars, tables, reports."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from dgsgpt import annotations as remarks
from dgsgpt import launch
from dgsgpt.format import ago, duration, loss, percent, perplexity, si, size
from dgsgpt.metrics import MetricsTail, read_summary
from dgsgpt.runs import Run
from dgsgpt.supervise import supervise

if TYPE_CHECKING:
    from dgsgpt.checkpoint import CheckpointInfo
    from dgsgpt.config import RunConfig
    from dgsgpt.data.prepare import Dataset
    from dgsgpt.evaluation.breakdown import Group
    from dgsgpt.evaluation.kept import Kept
    from dgsgpt.evaluation.report import Report as Evaluated
    from dgsgpt.hardware import Hardware

Report = Callable[[str, float], None]


# ---------------------------------------------------------------- runs
def run_summary(run: Run) -> dict[str, Any]:
    """What `--json` says of a run."""
    status = run.status()
    return {
        "run_id": run.id,
        "run_dir": str(run.path),
        "state": status.state,
        "step": status.step,
        "loss/val": read_summary(run.path).last.get("loss/val"),
        "error": status.error,
    }


def follow(run: Run, quiet: bool = False) -> int:
    """Train in the foreground under a progress bar; Ctrl-C saves and stops. Returns the trainer's exit code."""
    launch.check_startable(run)
    launch.mark_starting(run)
    if quiet:
        return supervise(run.path)
    console = Console(stderr=True)
    console.print(f"run [bold]{run.id}[/] in {run.path}", highlight=False, soft_wrap=True)
    with _bar(console) as bar:
        display = _TrainingDisplay(run, bar, console)
        code = supervise(run.path, tick=display.update)
        display.update()
    status = run.status()
    if status.error:
        click.echo(f"error: {status.error}", err=True)
    elif status.state == "stopped":
        console.print(f"{status.message}; go on with `dgsgpt resume {run.id}`", highlight=False, soft_wrap=True)
    else:
        console.print(
            f"{status.state}: write with `dgsgpt sample {run.id} --prompt 'It was'`", highlight=False, soft_wrap=True
        )
    return code


class _TrainingDisplay:
    """Reads what the trainer writes and shows it: a bar on a terminal, a line a validation elsewhere."""

    def __init__(self, run: Run, bar: Progress, console: Console) -> None:
        self._run, self._bar, self._console = run, bar, console
        self._tail = MetricsTail(run.path)
        self._task = bar.add_task("starting", total=run.config.train.steps, figures="")
        self._said = -1

    def update(self) -> None:
        status = self._run.status()
        self._tail.refresh()
        figures = [f"loss {loss(self._tail.last('loss/train'))}", f"val {loss(self._tail.last('loss/val'))}"]
        figures.append(f"{si(self._tail.last('perf/tokens_per_s'))} tok/s")
        if status.eta_s is not None:
            figures.append(f"{duration(status.eta_s)} left")
        self._bar.update(
            self._task,
            description=status.message or status.state,
            completed=status.step,
            total=status.max_steps,
            figures="  ".join(figures),
        )
        frame_step = int(self._tail.last("step") or 0)
        every = max(1, status.max_steps // 20)
        if not self._console.is_terminal and frame_step // every > self._said // every:
            self._said = frame_step
            self._console.print(
                f"step {frame_step}/{status.max_steps}  " + "  ".join(figures), highlight=False, soft_wrap=True
            )


def _bar(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[figures]}"),
    )
    return Progress(*columns, console=console, refresh_per_second=5, disable=not console.is_terminal)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Report]:
    """A bar for work whose share done is reported as `report("what", 0.4)`."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


# ---------------------------------------------------------------- tables
def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns of text, shown as it is; numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(header):
        numeric = all(isinstance(r[i], int | float) or r[i] is None for r in rows)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(loss(v) if isinstance(v, float) else "–" if v is None else str(v) for v in row))
    # As wide as it needs to be: a name that is cut cannot be given to the next command.
    Console(soft_wrap=True, markup=False, emoji=False, width=10_000).print(table)


def print_checkpoints(found: Sequence[CheckpointInfo]) -> None:
    """The table of `dgsgpt checkpoints`; star, name and tags have columns where there are any."""
    said = remarks.of_checkpoints(c.path for c in found)
    header = ["run", "step", "val loss", "bits/byte", "params", "size", "state"]
    rows: list[list[Any]] = [
        [
            c.run_id,
            c.step,
            c.metadata.get("loss_val"),
            c.metadata.get("bpb_val"),
            si(c.metadata.get("params")),
            size(c.bytes),
            c.problem or c.metadata.get("quantized") or "whole",
        ]
        for c in found
    ]
    if any(said.values()):
        header = ["", *header, "name", "tags"]
        words = [said[c.path] for c in found]
        rows = [["★" if w.star else "", *r, w.name, ", ".join(w.tags)] for r, w in zip(rows, words, strict=True)]
    print_table(header, rows)
    for folder in sorted({c.path.parent.parent for c in found}):
        problem = remarks.read(Run(folder)).problem
        if problem:
            click.echo(f"warning: {problem}", err=True)


def print_plan(config: RunConfig, report: dict[str, Any], machine: Hardware, source: str) -> None:
    """The text of `dgsgpt plan`; `source` is the config as the command was given it."""
    click.echo(f"parameters    {si(report['params'])}, {si(report['active_params'])} active a token")
    click.echo(
        f"FLOPs a token {report['flops_per_token']:.3g}; {config.tokens_per_step:,} tokens a step, "
        f"{config.train.steps:,} steps"
    )
    for part, amount in report["memory"].items():
        click.echo(f"  {part:12}{size(amount):>12}")
    for group in report["groups"]:
        click.echo(
            f"updates       {group['rule']} of {group['name']}: {si(group['numbers'])} parameters, "
            f"rate {group['lr']:g}, decay {group['weight_decay']:g}"
        )
    click.echo(f"plain recipe  {size(report['naive_bytes'])}: fp32 AdamW, the whole batch at once, nothing recomputed")
    total, free = report["memory"]["total"], report["free_bytes"]
    on_cpu = config.train.device == "cpu" or not machine.gpus
    name, whole = (machine.cpu_name, machine.ram_total_bytes) if on_cpu else (machine.name, machine.total_bytes)
    held = f" ({size(whole - free)} of {size(whole)} are taken)" if whole > free else ""
    words = {"fits": "fits", "tight": "fits, tightly", "over": "does not fit"}
    click.echo(f"{words[report['verdict']]}: needs {size(total)}, {size(free)} free on {name}{held}")
    if report["verdict"] != "fits":
        _print_fitted(report["fitted"], source)


def _print_fitted(fitted: dict[str, Any] | None, source: str) -> None:
    if fitted is None:
        click.echo("no recipe makes this model fit: choose a smaller one (model.n_layer, model.n_embd)")
        return
    click.echo(f"the same model fits in {size(fitted['total_bytes'])}:")
    for sentence in fitted["changes"]:
        click.echo(f"  {sentence}")
    click.echo("  " + " ".join([f"dgsgpt train {source}", *fitted["set"]]))


def print_dataset(dataset: Dataset) -> None:
    """The text of `dgsgpt prepare`."""
    per_token = dataset.train_bytes / dataset.train_tokens
    click.echo(f"{dataset.id}: {dataset.train_tokens:,} training and {dataset.val_tokens:,} validation tokens, "
               f"vocabulary {dataset.vocab_size:,}, {per_token:.2f} bytes a token\nin {dataset.path}")  # fmt: skip


# ---------------------------------------------------------------- evaluations
def print_evaluation(found: Evaluated, what: str, details: bool) -> None:
    """The text of `dgsgpt eval`."""
    whole = found.evaluation
    click.echo(f"{what}: loss {whole.loss:.4f}, perplexity {whole.ppl:.2f}, {whole.bpb:.4f} bits per byte "
               f"over {whole.tokens:,} tokens, {whole.bytes:,} bytes, context {found.context:,}, "
               f"stride {found.stride:,}")  # fmt: skip
    if found.stride < found.context:
        times = found.forward_tokens / whole.tokens
        click.echo(f"{found.forward_tokens:,} tokens were read, {times:.3g} times the text")
    click.echo(f"the likeliest token is right {percent(found.accuracy)} of the time; "
               f"expected calibration error {found.calibration_error:.4f}\n")  # fmt: skip
    _print_groups("tokens before", found.by_position)
    click.echo()
    _print_groups(f"times in {found.frequency_rule}", found.by_frequency)
    if not details:
        return
    click.echo()
    bins = [[f"{percent(b.low, 0)} to {percent(b.high, 0)}", b.tokens, b.confidence, b.accuracy]
            for b in found.calibration]  # fmt: skip
    print_table(["likeliest token's probability", "tokens", "mean", "right"], bins)
    click.echo()
    for word, passages in (("hardest", found.hardest), ("easiest", found.easiest)):
        for passage in passages:
            shown = "".join(c if c.isprintable() else " " for c in passage.text)  # a text must not steer the terminal
            click.echo(f"{word}, byte {passage.begin_byte:,}, {passage.bpb:.2f} bits per byte: {shown}")


def _print_groups(what: str, groups: Sequence[Group]) -> None:
    rows = [[f"{g.low:,}" if g.low == g.high else f"{g.low:,} to {g.high:,}", g.tokens, g.loss, g.standard_error]
            for g in groups]  # fmt: skip
    print_table([what, "tokens", "loss", "std. error"], rows)


def print_kept(found: Sequence[Kept]) -> None:
    """The table of `dgsgpt eval --list`: for each text the best first."""
    now = time.time()
    header = [
        "text",
        "sha256",
        "run",
        "step",
        "context",
        "stride",
        "loss",
        "perplexity",
        "bits/byte",
        "made",
        "when",
        "weights",
    ]
    rows = [
        [one.text_name, "/".join(part[:8] for part in one.comparable), one.run.id, one.step, one.record["context"],
         one.record["stride"], one.result("loss"), perplexity(one.result("ppl")), one.bpb, _made(one),
         ago(one.time, now), one.state]
        for one in found
    ]  # fmt: skip
    print_table(header, rows) if rows else click.echo("nothing was kept yet; `dgsgpt eval RUN` keeps its result")


def _made(one: Kept) -> str:
    return "on request" if one.automatic is None else f"every {one.automatic:,} steps"


def diagnose(root: Path) -> dict[str, str]:
    """What `dgsgpt doctor` says, one fact a line."""
    import platform
    import shutil

    from dgsgpt import hardware, profiles

    begun = time.perf_counter()
    import torch

    imported_s = time.perf_counter() - begun
    from dgsgpt.model import native

    machine = hardware.detect(root)
    gpus = ", ".join(f"{g.name}, {size(g.free_bytes)} of {size(g.total_bytes)} free" for g in machine.gpus)
    usable = "usable by torch" if torch.cuda.is_available() else "torch cannot use it: install a CUDA build"
    return {
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, imported in {imported_s:.1f} s, {torch.get_num_threads()} threads",
        "gpu": f"{gpus} ({usable})" if machine.gpus else "none found by the NVIDIA driver",
        "cpu": f"{machine.cpu_name}, {machine.cpu_cores} cores",
        "memory": f"{size(machine.ram_available_bytes)} of {size(machine.ram_total_bytes)} free",
        "disk": f"{size(machine.disk_free_bytes)} free for {root}",
        "profile": profiles.choose_profile(machine),
        "compiler": shutil.which("g++") or shutil.which("clang++") or "no C++ compiler: train.compile must stay off",
        "writing": f"single tokens on the CPU by {native.describe()}",
        "terminal": "yes" if sys.stdout.isatty() else "no",
    }
