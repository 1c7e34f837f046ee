"""`dgsgpt quantize`; heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option

if TYPE_CHECKING:
    from dgsgpt.checkpoint import Checkpoint
    from dgsgpt.quantization.judging import Judgement


@click.command()
@click.argument("checkpoint")
@click.argument("dest")
@click.option("--bits", default="8", show_default=True, type=click.Choice(["8", "4"]), help="Bits of a weight.")
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128", "256"]),
    help="Weights that share a scale (default: a row of 8 bits, 32 weights of 4).",
)
@click.option("--corpus", help="Judge on the validation split of this corpus (default: the checkpoint's).")
@click.option("--text", type=click.Path(path_type=Path), help="Judge on a whole text file.")
@click.option(
    "--max-tokens", default=20_000, show_default=True, type=click.IntRange(min=1), help="Predict that many at most."
)
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--yes", is_flag=True, help="Keep it without asking.")
@json_option
@runs_dir_option
def quantize(
    root: Path, checkpoint: str, dest: str, bits: str, group_size: str | None, corpus: str | None, text: Path | None,
    max_tokens: int, device: str, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Round CHECKPOINT's weights to 8 or 4 bits, show what that costs and gains, and keep it as the run DEST.

    CHECKPOINT is a directory, RUN or RUN@STEP; DEST a name, or a path for a directory elsewhere. Nothing is kept
    before you have seen the comparison and said yes; with --json only --yes keeps it.
    """
    if text is not None and corpus is not None:
        raise click.UsageError("--text and --corpus exclude each other")
    from dgsgpt import console
    from dgsgpt.checkpoint import find_checkpoint, load_checkpoint, refuse_quantized
    from dgsgpt.quantization.judging import judge
    from dgsgpt.quantization.keep import check_free, keep

    place = Path(dest)
    home, name = (root, dest) if place.name == dest else (place.absolute().parent, place.name)
    check_free(home, name)  # told now, not after minutes of measuring
    path = find_checkpoint(checkpoint, root)
    refuse_quantized(path, "quantized once more")
    kind, size = f"int{bits}", None if group_size is None else int(group_size)
    opened = load_checkpoint(path, device)
    what, content = _text(text, corpus, opened)
    with console.progress(quiet=as_json) as report:
        judged = judge(opened, kind, size, text=content, name=what, max_tokens=max_tokens, progress=report)
    if not as_json:
        _print(judged)
    wanted = yes or (not as_json and click.confirm(f"Keep it as {name}?"))
    kept = keep(path, home, name, kind, size, judged) if wanted else None
    if as_json:
        told = (
            {"run_id": kept.run.id, "run_dir": str(kept.run.path), "checkpoint": str(kept.checkpoint)} if kept else {}
        )
        print_json({**judged.quantized.to_dict(), **judged.to_dict(), "kept": told or None})
    else:
        click.echo(f"kept as {kept.run.id}: {kept.checkpoint}" if kept else "not kept")


def _text(file: Path | None, corpus: str | None, opened: Checkpoint) -> tuple[str, str]:
    """What the text is called, and the text."""
    from dgsgpt.data.text import read_file
    from dgsgpt.evaluation import validation_text

    if file is not None:
        return str(file), read_file(file)
    data = opened.config.data
    name = corpus or data.corpus
    return f"{name}, validation split", validation_text(name, data.val_fraction)


def _print(judged: Judgement) -> None:
    from dgsgpt import console
    from dgsgpt import format as fmt
    from dgsgpt.quantization import words

    made = judged.quantized
    rows = [
        [part.name, fmt.si(part.weights), fmt.size(part.before_bytes), fmt.size(part.after_bytes), part.note]
        for part in made.parts
    ]
    console.print_table(["weights", "how many", "before", f"as {made.plan.kind}", ""], rows)
    click.echo()
    table = [list(row[:5]) for row in words.rows(judged)]
    console.print_table(["", "before", made.plan.kind, "difference", "range"], table)
    click.echo()
    for sentence in words.sentences(judged):
        click.echo(sentence)


__all__ = ["quantize"]
