"""`dgsgpt inspect`: a look into a trained model as it reads a text. Heavy imports happen inside the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgsgpt import format as fmt
from dgsgpt.cli_options import json_option, print_json, runs_dir_option

if TYPE_CHECKING:
    from dgsgpt.checkpoint import Checkpoint
    from dgsgpt.inspect.attention import AttentionLook
    from dgsgpt.inspect.routing import RoutingLook
    from dgsgpt.inspect.surprise import Surprise


@click.command()
@click.argument("checkpoint")
@click.option("--text", help="The text to read.")
@click.option("--file", type=click.Path(path_type=Path), metavar="FILE", help="Read the text from a file instead.")
@click.option(
    "--what", default="surprise", show_default=True, type=click.Choice(["surprise", "attention", "routing"]),
    help="What each token costs, where the heads of a layer look, or which experts each token passes.",
)  # fmt: skip
@click.option("--against", metavar="CHECKPOINT", help="surprise: another one to read the same text; the difference.")
@click.option("--layer", type=int, help="Layer to look at, from 0 (attention: by default the last; routing: all).")
@click.option(
    "--last", type=click.IntRange(1, 128), help="attention, routing: show so many of the last tokens.  [default: 48]"
)
@click.option("--top", default=8, show_default=True, type=click.IntRange(min=1), help="Lines in a table of the most.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@json_option
@runs_dir_option
def inspect(
    root: Path, checkpoint: str, text: str | None, file: Path | None, what: str, against: str | None, layer: int | None,
    last: int | None, top: int, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Look into CHECKPOINT (a directory, RUN or RUN@STEP) while it reads a text."""
    if (text is None) == (file is None):
        raise click.UsageError("give either --text TEXT or --file FILE")
    if what == "surprise" and (layer, last) != (None, None):
        raise click.UsageError("--layer and --last are for --what attention and routing")
    if what != "surprise" and against is not None:
        raise click.UsageError("--against is for --what surprise")
    from dgsgpt.checkpoint import find_checkpoint, load_checkpoint
    from dgsgpt.data.text import read_file

    content = text if text is not None else read_file(file or "")
    other = None if against is None else find_checkpoint(against, root)
    opened = load_checkpoint(find_checkpoint(checkpoint, root), device)
    looks: dict[str, Callable[[], dict[str, Any]]] = {
        "surprise": lambda: _surprise(opened, content, top, as_json),
        "attention": lambda: _attention(opened, content, layer, last or 48, top, as_json),
        "routing": lambda: _routing(opened, content, layer, last or 48, as_json),
    }
    if other is not None:
        told = _difference(opened, lambda: load_checkpoint(other, device), content, top, as_json)
    else:
        told = looks[what]()
    if as_json:
        print_json(told)


# ---------------------------------------------------------------- surprise
def _surprise(opened: Checkpoint, text: str, top: int, as_json: bool) -> dict[str, Any]:
    from dgsgpt.inspect.surprise import surprise

    found = surprise(opened.model, opened.tokenizer, text)
    if not as_json:
        _print_surprise(found, top)
    _tell_long(found)
    return found.to_dict()


def _difference(
    opened: Checkpoint, other: Callable[[], Checkpoint], text: str, top: int, as_json: bool
) -> dict[str, Any]:  # fmt: skip
    """The same text read by two; the second is opened when the first has read it."""
    from dgsgpt import console
    from dgsgpt.inspect.surprise import pair, surprise

    a = surprise(opened.model, opened.tokenizer, text)
    second = other()
    b = surprise(second.model, second.tokenizer, text)
    pairs = pair(a, b)
    if not as_json:
        sides = (("A", a), ("B", b))
        rows = [[letter, one.loss, fmt.perplexity(one.ppl), one.bpb, one.tokens] for letter, one in sides]
        console.print_table(["", "loss", "perplexity", "bits/byte", "tokens"], rows)
        click.echo("most different:")
        far = sorted((one for one in pairs if one.a is not None), key=lambda one: -abs(one.gap))[:top]
        table = [[_quoted(one.text), one.start, one.a, one.b, "AB"[one.gap > 0]] for one in far]
        console.print_table(["text", "at", "nats A", "nats B", "better"], table)
    _tell_long(a if a.characters <= b.characters else b)
    return {"a": a.to_dict(), "b": b.to_dict(), "pairs": [one.to_dict() for one in pairs]}


def _tell_long(found: Surprise) -> None:
    if found.characters < found.whole:
        click.echo(
            f"note: of {found.whole:,} characters the first {found.characters:,} were judged, which are "
            f"{found.tokens:,} tokens",
            err=True,
        )


def _print_surprise(found: Surprise, top: int) -> None:
    from dgsgpt import console

    click.echo(
        f"loss {fmt.loss(found.loss)}  perplexity {fmt.perplexity(found.ppl)}  bits/byte {fmt.loss(found.bpb)}  "
        f"{fmt.number(found.nats, 1)} nats for {found.tokens:,} tokens, {found.bytes:,} bytes"
    )
    overlapping = f"read in windows of {found.context:,} tokens, one every {found.stride:,}"
    how = overlapping if found.stride < found.context else "each token judged after all before it"
    click.echo(f"{how}; the most surprising:")
    rows = [
        [_quoted(piece.text), piece.start, piece.nats, fmt.percent(piece.probability, 3),
         ", ".join(f"{_quoted(name)} {fmt.percent(share)}" for name, share in piece.likeliest[:3])]
        for piece in found.hardest(top)
    ]  # fmt: skip
    console.print_table(["text", "at", "nats", "probability", "rather"], rows)


def _quoted(text: str) -> str:
    return f"“{fmt.printable(text)}”"


# ---------------------------------------------------------------- attention
def _attention(
    opened: Checkpoint, text: str, layer: int | None, last: int, top: int, as_json: bool
) -> dict[str, Any]:  # fmt: skip
    from dgsgpt.inspect.attention import look_at_attention

    number = opened.model.config.n_layer - 1 if layer is None else layer
    found = look_at_attention(opened.model, opened.tokenizer, opened.tokenizer.encode(text), number, last)
    _tell_cut(found.cut, opened)
    if not as_json:
        _print_attention(found, top)
    return found.to_dict()


def _print_attention(found: AttentionLook, top: int) -> None:
    from dgsgpt import console

    click.echo(f"layer {found.layer}, {found.kind}: where the last token, {_quoted(found.labels[-1])}, looks")
    rows: list[list[Any]] = []
    for head in found.heads:
        row = found.maps[head.number, -1]
        most = [(float(row[i]), _quoted(found.labels[i])) for i in (-row).argsort(kind="stable")[:top] if row[i] > 0]
        looks = [f"{name} {fmt.percent(share)}" for share, name in most]
        if found.earlier[head.number, -1] > 0:
            looks.append(f"before these {fmt.percent(float(found.earlier[head.number, -1]))}")
        rows.append([head.number, head.group, head.reach, ", ".join(looks)])
    console.print_table(["head", "group", "sees", "looks at"], rows)


# ---------------------------------------------------------------- routing
def _routing(opened: Checkpoint, text: str, layer: int | None, last: int, as_json: bool) -> dict[str, Any]:
    from dgsgpt.inspect.routing import look_at_routing

    found = look_at_routing(opened.model, opened.tokenizer, opened.tokenizer.encode(text), last)
    chosen = found if layer is None or not found.layers else found.only(layer)
    _tell_cut(found.cut, opened)
    if as_json:
        return chosen.to_dict()
    if not found.layers:
        click.echo("a dense model: every token passes the same network, so nothing is routed")
    elif layer is None:
        _print_loads(chosen)
    else:
        _print_choices(chosen)
    return {}


def _print_loads(found: RoutingLook) -> None:
    from dgsgpt import console

    click.echo(_about(found) + "; share of all choices:")
    header = ["layer", *(f"expert {e}" for e in range(found.layers[0].n_expert))]
    console.print_table(header, [[one.layer, *map(fmt.percent, one.load().tolist())] for one in found.layers])


def _print_choices(found: RoutingLook) -> None:
    from dgsgpt import console

    (one,) = found.layers
    click.echo(f"layer {one.layer}: {_about(found)}")
    rows: Sequence[Sequence[Any]] = [
        [_quoted(label), ", ".join(f"{e} ({fmt.number(w, 2)})" for e, w in zip(experts, weights, strict=True))]
        for label, experts, weights in zip(found.labels, one.experts.tolist(), one.weights.tolist(), strict=True)
    ]
    console.print_table(["token", "experts (weight)"], rows)


def _about(found: RoutingLook) -> str:
    beside = f", besides {found.shared} for all" if found.shared else ""
    return f"each token passes {found.per_token} of {found.layers[0].n_expert} experts{beside}"


def _tell_cut(tokens: int, opened: Checkpoint) -> None:
    if tokens:
        size = opened.model.config.block_size
        click.echo(f"note: the text's first {tokens:,} tokens do not fit the context of {size:,}", err=True)


__all__ = ["inspect"]
