"""`dgsgpt sample` and `dgsgpt eval`: a trained model at work. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option


@click.command()
@click.argument("checkpoint")
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--max-new-tokens", default=200, show_default=True)
@click.option("--temperature", default=0.8, show_default=True, help="0 always takes the likeliest token.")
@click.option("--top-k", type=int, help="Choose among the k likeliest tokens.")
@click.option("--top-p", type=float, help="Choose among the likeliest tokens that hold this share of probability.")
@click.option("--seed", type=int, help="Same seed, same text.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@json_option
@runs_dir_option
def sample(root: Path, checkpoint: str, prompt: str, device: str, as_json: bool, **sampling: Any) -> None:
    """Continue a prompt with CHECKPOINT (a directory, RUN or RUN@STEP)."""
    from dgsgpt.checkpoint import find_checkpoint, load_checkpoint
    from dgsgpt.generation import stream

    opened = load_checkpoint(find_checkpoint(checkpoint, root), device)
    pieces = stream(opened.model, opened.tokenizer, prompt, **sampling)
    if as_json:
        text = "".join(pieces)
        print_json({"text": text, "tokens": pieces.stats.tokens, "tokens_per_s": pieces.stats.tokens_per_s})
        return
    click.echo(prompt, nl=False)
    for piece in pieces:
        click.echo(piece, nl=False)
    click.echo()


@click.command("eval")
@click.argument("checkpoint")
@click.option("--text", type=click.Path(path_type=Path), help="Evaluate on a whole text file.")
@click.option("--corpus", help="Evaluate on the validation split of this corpus (default: the one it was trained on).")
@click.option("--context", type=int, metavar="TOKENS", help="Length of a window (default: the trained context).")
@click.option(
    "--rope-scaling",
    type=click.Choice(["linear", "yarn", "llama3"]),
    help="Stretch rotary positions from the trained context to --context; nothing is retrained.",
)
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@json_option
@runs_dir_option
def evaluate(
    root: Path, checkpoint: str, text: Path | None, corpus: str | None, context: int | None, rope_scaling: str | None,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """Loss, perplexity and bits per byte of CHECKPOINT, deterministic and over the whole split."""
    from dgsgpt import console
    from dgsgpt.checkpoint import find_checkpoint, load_checkpoint
    from dgsgpt.data.text import read_file
    from dgsgpt.evaluation import evaluate_text, extended, validation_text

    if text is not None and corpus is not None:
        raise click.UsageError("--text and --corpus exclude each other")
    opened = load_checkpoint(find_checkpoint(checkpoint, root), device)
    window = opened.config.model.block_size if context is None else context
    model = extended(opened.model, window, rope_scaling)
    data = opened.config.data
    # A text without the separator is one document.
    separator = data.document_separator
    if text is not None:
        content, what = read_file(text), str(text)
    else:
        name = corpus or data.corpus
        content, what = validation_text(name, data.val_fraction), f"{name}, validation split"
    with console.progress(quiet=as_json) as report:
        result = evaluate_text(
            model, opened.tokenizer, content, block_size=window, device=device, document_separator=separator,
            on_batch=lambda done, total: report(f"evaluating {what}", done / total),
        )  # fmt: skip
    if as_json:
        print_json({**result.to_dict(), "context": window})
    else:
        click.echo(f"{what}: loss {result.loss:.4f}, perplexity {result.ppl:.2f}, {result.bpb:.4f} bits per byte "
                   f"over {result.tokens:,} tokens, {result.bytes:,} bytes, context {window:,}")  # fmt: skip


COMMANDS = (sample, evaluate)
