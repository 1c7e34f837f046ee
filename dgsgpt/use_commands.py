"""`dgsgpt sample` and `dgsgpt eval`: a trained model at work. Heavy imports happen inside the commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dgsgpt.cli_options import json_option, print_json, runs_dir_option

if TYPE_CHECKING:
    from dgsgpt.checkpoint import Checkpoint
    from dgsgpt.config import DataConfig
    from dgsgpt.evaluation.report import Report
    from dgsgpt.generation.beam import EarlyStopping


@click.command()
@click.argument("checkpoint")
@click.option("--prompt", help="Text to continue.")
@click.option(
    "--prompts", type=click.Path(path_type=Path), metavar="FILE",
    help='Continue many: one a line, or a .jsonl with "prompt" in each object. Writes JSON lines.',
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Where --prompts writes (default: stdout)."
)
@click.option("--max-new-tokens", default=200, show_default=True)
@click.option("--preset", metavar="NAME", help="greedy, precise, balanced or creative; options change single settings.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token.  [default: 0.8]")
@click.option("--top-k", type=int, help="Choose among the k likeliest tokens.")
@click.option("--top-p", type=float, help="Choose among the likeliest tokens that hold this share of probability.")
@click.option("--min-p", type=float, help="Choose among tokens at least this share as likely as the likeliest.")
@click.option("--repetition-penalty", type=float, help="Above 1, tokens that were there already become less likely.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End before this text; may be given several times.")
@click.option("--seed", type=int, help="Same seed, same text; sample n has the seed plus n - 1.")
@click.option("--samples", type=int, help="Texts for each prompt.  [default: 1]")
@click.option("--batch-size", default=32, show_default=True, help="Texts written at once; fewer need less memory.")
@click.option("--beams", type=int, help="Search for the likeliest texts with so many beams instead of drawing.")
@click.option("--length-penalty", type=float, help="With --beams: above 0 longer texts, below shorter.  [default: 1.0]")
@click.option(
    "--early-stopping", type=click.Choice(["no", "yes", "never"]),
    help="With --beams: yes ends once as many texts have ended as there are beams; no when the best open one, ended "
    "now, would not beat them; never when none can at any length.  [default: no]",
)  # fmt: skip
@click.option("--n-best", type=int, help="With --beams: give so many of the texts found.  [default: all]")
@click.option(
    "--alternatives", type=click.IntRange(1, 50), metavar="N",
    help="Also tell each token that was written, its -log p, and the N likeliest in its place.",
)  # fmt: skip
@click.option(
    "--written", metavar="IDS", callback=lambda _context, _option, value: _read_ids(value),
    help="New tokens that are there already, as 12,5,99: goes on after them as if it had never stopped.",
)  # fmt: skip
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@json_option
@runs_dir_option
def sample(root: Path, checkpoint: str, device: str, **settings: Any) -> None:
    """Continue a prompt with CHECKPOINT (a directory, RUN or RUN@STEP).

    Rules apply in this order: repetition penalty, temperature, top-k, top-p, min-p.
    """
    _check_sample(settings)
    from dgsgpt.checkpoint import find_checkpoint, load_checkpoint
    from dgsgpt.generation import preset

    given = preset(settings["preset"]) if settings["preset"] is not None else {}
    rules = {"max_new_tokens": settings["max_new_tokens"], "stop": settings["stop"], **given}
    rules |= {name: settings[name] for name in (*_RULES, "seed") if settings[name] is not None}
    opened = load_checkpoint(find_checkpoint(checkpoint, root), device)
    if settings["prompts"] is not None:
        _sample_file(opened, settings, rules)
    elif settings["beams"] is not None or settings["samples"] is not None:
        _sample_several(opened, settings, rules)
    else:
        _sample_one(opened, settings, rules)


_RULES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def _read_ids(value: str | None) -> tuple[int, ...]:
    parts = [part.strip() for part in (value or "").split(",") if part.strip()]
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise click.BadParameter(f"{value!r} must be token ids, as 12,5,99")
    return tuple(map(int, parts))


def _check_sample(settings: dict[str, Any]) -> None:
    """Refuse options that do not go together."""

    def named(*names: str) -> str:
        return ", ".join(f"--{name.replace('_', '-')}" for name in names if settings[name] not in (None, ()))

    if (settings["prompt"] is None) == (settings["prompts"] is None):
        raise click.UsageError("give either --prompt TEXT or --prompts FILE")
    if settings["out"] is not None and settings["prompts"] is None:
        raise click.UsageError("--out is where --prompts writes; give --prompts FILE")
    drawn = named(*_RULES, "preset", "seed", "samples", "stop", "prompts")
    if settings["beams"] is not None and drawn:
        raise click.UsageError(f"--beams draws nothing and does not go with {drawn}")
    of_beams = named("length_penalty", "early_stopping", "n_best")
    if settings["beams"] is None and of_beams:
        raise click.UsageError(f"{of_beams} is for --beams; give --beams N")
    of_one, several = named("alternatives", "written"), named("prompts", "samples", "beams")
    if of_one and several:
        raise click.UsageError(f"{of_one} is for one text and does not go with {several}")


def _sample_one(opened: Checkpoint, settings: dict[str, Any], rules: dict[str, Any]) -> None:
    from dgsgpt.generation import stream
    from dgsgpt.generation.orders import tell_text
    from dgsgpt.inspect.tokens import tell_choices

    prompt, written, most = settings["prompt"], settings["written"], settings["alternatives"]
    opened.tokenizer.decode(written)  # refuses ids that it does not have before anything is told
    pieces = stream(opened.model, opened.tokenizer, prompt, written=written, **rules)
    _tell_cropped(pieces.stats.cropped, opened)
    told: dict[str, Any] = {}
    if settings["as_json"]:
        told = tell_text(pieces)
    else:
        click.echo(prompt, nl=False)
        for piece in pieces:
            click.echo(piece, nl=False)
        click.echo()
    if most is not None:
        ids = [*written, *pieces.stats.ids]
        told["choices"] = tell_choices(opened.model, opened.tokenizer, prompt, ids, most)
    if settings["as_json"]:
        print_json(told)
    for one in () if settings["as_json"] else told.get("choices", ()):
        others = ", ".join(f"{other['text']!r} {other['p']:.1%}" for other in one["alternatives"])
        click.echo(f"{one['id']:>7}  {one['text']!r:<16} {one['nats']:6.2f} nats | {others}")


def _tell_cropped(tokens: int, opened: Checkpoint) -> None:
    if tokens:
        size = opened.model.config.block_size
        click.echo(f"note: the prompt's first {tokens:,} tokens do not fit the context of {size:,}", err=True)


def _sample_several(opened: Checkpoint, settings: dict[str, Any], rules: dict[str, Any]) -> None:
    """Several texts of one prompt: samples, or the best of a beam search."""
    from dgsgpt import console
    from dgsgpt.generation import BeamSettings
    from dgsgpt.generation.orders import tell_beams, tell_samples

    prompt = settings["prompt"]
    with console.progress(quiet=settings["as_json"]) as report:
        if settings["beams"] is not None:
            given = {name: settings[name] for name in ("length_penalty", "n_best") if settings[name] is not None}
            rule = settings["early_stopping"]
            early: EarlyStopping = "never" if rule == "never" else rule == "yes"
            beams = BeamSettings(settings["beams"], rules["max_new_tokens"], early_stopping=early, **given)
            told, cropped = tell_beams(opened, prompt, beams, report)
        else:
            told, cropped = tell_samples(opened, prompt, settings["samples"], settings["batch_size"], rules, report)
    _tell_cropped(cropped, opened)
    if settings["as_json"]:
        print_json(told)
        return
    for number, one in enumerate(told.get("beams", ()), 1):
        click.echo(f"--- beam {number}, score {one['score']:.4f}\n{prompt}{one['text']}")
    for number, one in enumerate(told.get("samples", ()), 1):
        click.echo(f"--- sample {number}, seed {one['seed']}\n{prompt}{one['text']}")


def _sample_file(opened: Checkpoint, settings: dict[str, Any], rules: dict[str, Any]) -> None:
    from dgsgpt import console
    from dgsgpt.generation import write_batch
    from dgsgpt.generation.prompts import in_order, open_lines, read_prompts, to_record

    prompts = read_prompts(settings["prompts"])
    cropped = 0
    with console.progress(quiet=settings["as_json"]) as report:
        found = write_batch(
            opened.model, opened.tokenizer, prompts, samples=1 if settings["samples"] is None else settings["samples"],
            batch_size=settings["batch_size"], on_progress=lambda share, tokens: report(f"{tokens:,} tokens", share),
            **rules,
        )  # fmt: skip
        with open_lines(settings["out"]) as write:  # not before the prompts are known to be of use
            for result in in_order(found):
                cropped += result.stats.cropped > 0
                write(to_record(result, prompts[result.prompt]))
    if cropped:
        size = opened.model.config.block_size
        click.echo(f"note: {cropped:,} texts have prompts longer than the context of {size:,} tokens", err=True)


@click.command("eval")
@click.argument("checkpoint", required=False)
@click.option(
    "--text",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Evaluate on a whole text file; - is standard input.",
)
@click.option("--corpus", help="Evaluate on the validation split of this corpus (default: the one it was trained on).")
@click.option("--context", type=int, metavar="TOKENS", help="Length of a window (default: the trained context).")
@click.option(
    "--stride", type=int, metavar="TOKENS",
    help="Begin a window every so many tokens, so that each token has at least context - stride before it: nearer to "
    "what the model can do, and context / stride times the work (default: the context; 1 is exact).",
)  # fmt: skip
@click.option("--max-tokens", type=click.IntRange(min=1), help="Judge that many tokens at most, spread over the text.")
@click.option(
    "--rope-scaling",
    type=click.Choice(["linear", "yarn", "llama3"]),
    help="Stretch rotary positions from the trained context to --context; nothing is retrained.",
)
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--details", is_flag=True, help="Also the hardest and easiest passages, and how sure it is.")
@click.option("--keep/--no-keep", default=True, show_default=True, help="Keep the result with the checkpoint.")
@click.option(
    "--list",
    "listed",
    is_flag=True,
    help="List what was kept, of all runs or of CHECKPOINT (a run, too), and what trainers found at checkpoints.",
)
@json_option
@runs_dir_option
def evaluate(
    root: Path, checkpoint: str | None, text: Path | None, corpus: str | None, listed: bool, as_json: bool,
    **settings: Any,
) -> None:  # fmt: skip
    """Loss, perplexity and bits per byte of CHECKPOINT, deterministic and over the whole split.

    Tables show where they come from: tokens with much or little text before them, rare and frequent ones.
    """
    if text is not None and corpus is not None:
        raise click.UsageError("--text and --corpus exclude each other")
    if listed:
        if text is not None or corpus is not None:
            raise click.UsageError("--list shows what was kept; leave --text and --corpus out")
        _list_kept(root, checkpoint, as_json)
    elif checkpoint is None:
        raise click.UsageError("give a CHECKPOINT (a directory, RUN or RUN@STEP), or --list")
    else:
        _evaluate(root, checkpoint, text, corpus, as_json=as_json, **settings)


def _evaluate(
    root: Path, checkpoint: str, text: Path | None, corpus: str | None, *, context: int | None, stride: int | None,
    max_tokens: int | None, rope_scaling: str | None, device: str, details: bool, keep: bool, as_json: bool,
) -> None:  # fmt: skip
    from dgsgpt import console
    from dgsgpt.checkpoint import find_checkpoint, load_checkpoint
    from dgsgpt.evaluation import extended
    from dgsgpt.evaluation.report import evaluate_fully, training_frequencies
    from dgsgpt.evaluation.sliding import check_stride

    opened = load_checkpoint(find_checkpoint(checkpoint, root), device)
    window = opened.config.model.block_size if context is None else context
    model = extended(opened.model, window, rope_scaling)
    step = check_stride(stride, window)
    content, what = _text(text, corpus, opened.config.data)
    frequencies = training_frequencies(opened.metadata, opened.tokenizer)
    separator = opened.config.data.document_separator  # a text without it is one document
    times = "" if step == window else f", reading it {window / step:.3g} times"
    with console.progress(quiet=as_json) as report:
        result = evaluate_fully(
            model, opened.tokenizer, content, context=window, stride=step, max_tokens=max_tokens, device=device,
            frequencies=frequencies, document_separator=separator,
            on_batch=lambda done, total: report(f"evaluating {what}{times}", done / total),
        )  # fmt: skip
    said = ""
    if keep:
        given = {
            "text": text, "corpus": corpus, "context": context, "stride": stride, "max-tokens": max_tokens,
            "rope-scaling": rope_scaling,
        }  # fmt: skip
        words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
        how = {"document_separator": separator, "rope_scaling": rope_scaling}
        said = _keep(opened, result, what, how, ["dgsgpt", "eval", checkpoint, *words])
    if as_json:
        print_json(result.to_dict() if details else result.figures())
    else:
        console.print_evaluation(result, what, details)
    if said:
        click.echo(said, err=True)  # `--json` prints one object and nothing else


def _text(file: Path | None, corpus: str | None, data: DataConfig) -> tuple[str, str]:
    """The text to evaluate on, and what it is called."""
    from dgsgpt.data.text import read_file
    from dgsgpt.evaluation import validation_text

    if file is not None and str(file) == "-":
        return _standard_input(), "standard input"
    if file is not None:
        return read_file(file), str(file)
    name = corpus or data.corpus
    return validation_text(name, data.val_fraction), f"{name}, validation split"


def _standard_input() -> str:
    """What comes in, by the same rules as a file: through one, because it may be longer than the memory."""
    import shutil
    import sys
    import tempfile

    from dgsgpt.data.text import read_file, shown
    from dgsgpt.errors import DataError

    try:
        with tempfile.NamedTemporaryFile(prefix="dgsgpt-") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
            file.flush()
            try:
                return read_file(file.name)
            except DataError as e:
                raise DataError(str(e).replace(shown(file.name), "standard input")) from None
    except OSError as e:
        raise DataError(f"standard input: cannot be read: {e.strerror or e}; save the text to a file") from None


def _keep(opened: Checkpoint, result: Report, what: str, how: dict[str, str | None], command: list[str]) -> str:
    """Keep a result; what became of it, because a result that cannot be kept is still to be shown."""
    from dgsgpt.errors import RunError
    from dgsgpt.evaluation import kept

    sha256 = opened.tokenizer.sha256
    try:
        path = kept.keep(opened.path, result, text_name=what, tokenizer_sha256=sha256, command=command, **how)
    except RunError as e:
        return f"warning: {e}"
    if path is None:
        return f"not kept: {opened.path} is not in a run's directory"
    return f"kept in {path}; see `dgsgpt eval --list`"


def _list_kept(root: Path, reference: str | None, as_json: bool) -> None:
    from dgsgpt import console
    from dgsgpt.catalog_commands import find_target
    from dgsgpt.evaluation import automatic
    from dgsgpt.evaluation.kept import list_kept
    from dgsgpt.runs import list_runs

    target = None if reference is None else find_target(reference, root)
    runs = list_runs(root) if target is None else [target.owner]
    made = automatic.saved(automatic.of_runs(runs))
    found, damaged = list_kept(runs, checkpoint=target.name if target else None, more=made)
    if as_json:
        print_json({"evaluations": [one.to_dict() for one in found], "damaged": damaged})
        return
    console.print_kept(found)
    if damaged:
        click.echo(f"warning: {damaged} damaged lines were left out", err=True)


COMMANDS = (sample, evaluate)
