"""`dgsgpt import` and `dgsgpt export`: models of other programs. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option
from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest")
@click.option(
    "--vocab",
    type=click.Path(path_type=Path),
    help="DGS-GPT files: the text whose characters are the model's vocabulary.",
)
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="KEY=NUMBER",
    help="DGS-GPT files without a config: what the weights cannot tell, e.g. n_head=4 or moe_k=1.",
)
@json_option
@runs_dir_option
def import_(root: Path, source: Path, dest: str, vocab: Path | None, given: tuple[str, ...], as_json: bool) -> None:
    """Bring the model SOURCE here as the run DEST: a name, or a path for a directory elsewhere.

    SOURCE is a .pth file of the original DGS-GPT, a Hugging Face folder (GPT-2, Llama, Mistral, Mixtral, Qwen), a GGUF
    file, or a checkpoint folder of dgsgpt. Nothing in it is executed.
    """
    from dgsgpt import console
    from dgsgpt.interop.keep import import_model

    place = Path(dest)
    if place.name != dest:  # a path: the run is made there instead of among the others
        root, dest = place.absolute().parent, place.name
    with console.progress(quiet=as_json) as report:
        done = import_model(source, root, dest, vocab=vocab, given=dict(map(_number, given)), progress=report)
    for warning in done.warnings:
        click.echo(f"note: {warning}", err=True)
    if as_json:
        print_json(
            {
                "run_id": done.run.id,
                "run_dir": str(done.run.path),
                "checkpoint": str(done.checkpoint),
                "family": done.family,
                "warnings": list(done.warnings),
            }
        )
    else:
        click.echo(f"{done.family} model imported as {done.run.id}: {done.checkpoint}")


def _number(text: str) -> tuple[str, int]:
    key, equals, value = text.partition("=")
    if not equals or not value.strip().isdecimal() or len(value) > 18:  # longer ones are no settings
        raise CheckpointError(f"--set {shown(repr(text))} must be KEY=NUMBER, e.g. n_head=4")
    return key.strip(), int(value)


@click.command()
@click.argument("checkpoint")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--format", "kind", default="hf", show_default=True, type=click.Choice(["hf"]))
@click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]),
    help="How the weights are stored.",
)  # fmt: skip
@json_option
@runs_dir_option
def export(root: Path, checkpoint: str, dest: Path, kind: str, dtype: str, as_json: bool) -> None:
    """Write CHECKPOINT (RUN, RUN@STEP or a directory) to the new folder DEST, for `transformers` and what reads it."""
    from dgsgpt import console
    from dgsgpt.checkpoint import find_checkpoint
    from dgsgpt.interop.hf_export import write_hf

    path = find_checkpoint(checkpoint, root)
    with console.progress(quiet=as_json) as report:
        written = write_hf(path, dest, dtype=dtype, progress=report)
    if as_json:
        print_json({"path": str(written), "format": kind, "dtype": dtype, "checkpoint": str(path)})
    else:
        click.echo(f"written: {written}")


COMMANDS = (import_, export)
