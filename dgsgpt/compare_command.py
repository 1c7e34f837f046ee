"""`dgsgpt compare`; heavy imports happen inside the command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option

if TYPE_CHECKING:
    from dgsgpt.config import RunConfig
    from dgsgpt.evaluation.paired import Comparison, Subject
    from dgsgpt.model import GPT


@click.command()
@click.argument("checkpoints", nargs=-1, metavar="A B [C D]")
@click.option("--corpus", help="Compare on the validation split of this corpus (default: that of A).")
@click.option("--text", type=click.Path(path_type=Path), help="Compare on a whole text file.")
@click.option(
    "--max-tokens", default=100_000, show_default=True, type=click.IntRange(min=1), help="Predict that many at most."
)
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@json_option
@runs_dir_option
def compare(
    root: Path, checkpoints: tuple[str, ...], corpus: str | None, text: Path | None, max_tokens: int, device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare checkpoint A with B (and C, D) on the same text: differences with 95 % intervals.

    Each is a directory, RUN or RUN@STEP.
    """
    if not 2 <= len(checkpoints) <= 4:
        raise click.UsageError(f"give 2 to 4 checkpoints, not {len(checkpoints)}")
    if text is not None and corpus is not None:
        raise click.UsageError("--text and --corpus exclude each other")
    from dgsgpt import console
    from dgsgpt.checkpoint import CONFIG, find_checkpoint, verify
    from dgsgpt.config import load_config
    from dgsgpt.evaluation.paired import compare as compare_models

    paths = [find_checkpoint(reference, root) for reference in checkpoints]
    for path in paths:
        verify(path)  # all of them before the first is judged
    configs = [load_config(path / CONFIG) for path in paths]
    what, content, notes = _text(text, corpus, configs)
    given = zip(checkpoints, paths, configs, strict=True)
    subjects = [_subject(reference, path, config, device) for reference, path, config in given]
    with console.progress(quiet=as_json) as report:
        found = compare_models(
            subjects, content, max_tokens=max_tokens, document_separator=configs[0].data.document_separator,
            device=device, on_batch=lambda done, total: report(f"comparing on {what}", done / total),
        )  # fmt: skip
    if as_json:
        print_json({"text": what, **found.to_dict(), "notes": notes})
    else:
        _print(found, what, notes)


def _text(file: Path | None, corpus: str | None, configs: Sequence[RunConfig]) -> tuple[str, str, list[str]]:
    """What the text is called, the text, and what must be said of who has read it."""
    from dgsgpt.data.text import read_file
    from dgsgpt.evaluation import validation_text
    from dgsgpt.unseen import training_notes, unseen_fraction

    if file is not None:
        return str(file), read_file(file), []
    name = corpus or configs[0].data.corpus
    fraction = unseen_fraction(name, [config.data for config in configs])
    return f"{name}, validation split", validation_text(name, fraction), training_notes(name, configs)


def _subject(name: str, path: Path, config: RunConfig, device: str) -> Subject:
    from dgsgpt.checkpoint import TOKENIZER, load_checkpoint
    from dgsgpt.data.tokenizer import load_tokenizer
    from dgsgpt.evaluation.paired import Subject

    @contextmanager
    def opened() -> Iterator[GPT]:
        yield load_checkpoint(path, device).model

    return Subject(name, load_tokenizer(path / TOKENIZER), config.model.block_size, opened)


def _print(found: Comparison, what: str, notes: Sequence[str]) -> None:
    from dgsgpt import console
    from dgsgpt import format as fmt

    click.echo(f"{what}: {found.text_rule}, {found.tokens:,} tokens of A, {found.bytes:,} bytes")
    rows = [[m.letter, m.name, m.loss, fmt.perplexity(m.ppl), m.bpb, m.rare, m.late] for m in found.models]
    console.print_table(["", "checkpoint", "loss", "perplexity", "bits/byte", "rare tokens", "last quarter"], rows)
    click.echo()
    names = {"bpb": "bits/byte", "loss": "loss", "rare": "rare tokens", "late": "last quarter"}
    table = [
        [f"A − {pair.letter}", names[name], fmt.signed(d.value), f"{fmt.signed(d.low)} to {fmt.signed(d.high)}"]
        for pair in found.pairs
        for name, d in pair.differences.items()
        if d is not None
    ]
    console.print_table(["", "difference", "mean", "95 % interval"], table)
    click.echo()
    for pair in found.pairs:
        click.echo(pair.sentence)
    for sentence in (*found.warnings, *notes):
        click.echo(f"warning: {sentence}")
    click.echo(f"{found.window_rule}; {found.blocks} blocks, {found.block_rule}; {found.draws:,} draws")
    if found.rare_rule:
        click.echo(f"{found.rare_rule}; last quarter: of each window")
    click.echo(f"sha256 of {found.hashed} {found.sha256}")
    click.echo(found.caveat)


__all__ = ["compare"]
