"""Writing with a model on a page: what is being written, the stream that Stop can end, and how text is shown.

A press of any button makes Streamlit end the running script at the next thing it draws. So whatever must survive is
in the session before it is drawn: an `Output` grows there piece by piece, and a stream that is cut off keeps its text.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dgsgpt import format as fmt
from dgsgpt.errors import DgsgptError
from dgsgpt.ui import engines
from dgsgpt.ui.atoms import Html, esc, markup
from dgsgpt.ui.checkpoint_table import Entry, told
from dgsgpt.ui.sampling_panel import MAX_NEW_TOKENS as MAX_NEW_TOKENS
from dgsgpt.ui.sampling_panel import MAX_SEED as MAX_SEED
from dgsgpt.ui.theme import c, rgba

if TYPE_CHECKING:
    from dgsgpt.generation import Stats
    from dgsgpt.inspect.tokens import Choice

_FRAME_S, _SLOW_FRAME_S = 0.05, 0.25
_LONG_TEXT = 20_000
_MOST_BEFORE = 20  # texts that can be gone back to
SHOWN_PROMPT = 600  # characters of a prompt that are shown before what was written
_ENDS = {
    "length": "as long as asked for",
    "end_of_text": "the model ended the text",
    "stop": "the stop text came",
}


def plain_label(text: str, limit: int = 44) -> str:
    """A text as one short line for a label that reads markdown: nothing in it has a meaning there."""
    line = " ".join(text[: 20 * limit].split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~:$&@])", r"\\\1", line)


# ---------------------------------------------------------------- writing
@dataclass
class Output:
    """What one model wrote, so far: kept in the session while it is written."""

    ref: str
    name: str
    color: str
    prompt: str
    settings: dict[str, Any]
    letter: str = ""
    text: str = ""
    busy: str = ""
    stats: Stats | None = None
    block_size: int = 0
    problem: str | None = None
    choices: list[Choice] | None = None  # what else could have stood at each token; None while that is not read
    looking: bool = False
    before: Output | None = None  # the text that this one continues or branches from
    branched_at: int | None = None  # the token that was chosen in place of another

    def headline(self) -> str:
        """Speed, time to the first token and mean log p, e.g. `118 tok/s · first 24 ms · −2.41 nats/token`."""
        stats = self.stats
        if stats is None or not stats.ids:
            return ""
        parts = []
        if stats.tokens:
            parts = [f"{fmt.si(stats.tokens_per_s)} tok/s", f"first {fmt.duration(stats.first_token_s)}"]
        mean = -sum(stats.nats) / len(stats.nats)
        return " · ".join([*parts, f"{fmt.number(mean, 2)} nats/token"])

    def figures(self) -> str:
        """Speed, time to the first token and count, e.g. `118 tok/s · first 24 ms · 96 tokens`."""
        stats = self.stats
        if stats is None or not stats.tokens:
            return ""
        first = f"first {fmt.duration(stats.first_token_s)}"
        return f"{fmt.si(stats.tokens_per_s)} tok/s · {first} · {fmt.plural(stats.tokens, 'token')}"

    def remark(self) -> str:
        """How it ended or what it waits for, the seed, and what of the prompt did not fit."""
        stats = self.stats
        if self.busy:
            return self.busy
        if stats is None:
            return "stopped before the first token"
        parts = [_ENDS.get(stats.finish_reason or "", "stopped"), f"seed {stats.seed}"]
        if stats.cropped:
            lost = fmt.plural(stats.cropped, "token")
            parts.append(f"the first {lost} of the prompt did not fit the context of {fmt.number(self.block_size)}")
        return " · ".join(parts)


@dataclass(frozen=True)
class Shown:
    """What the page shows: the checkpoints chosen, the prompt as it stands, and what was written last."""

    picked: Sequence[Entry]
    prompt: str
    outputs: Sequence[Output]


def write(entry: Entry, output: Output, draw: Callable[[], None]) -> None:
    """Let the model of `entry` go on from `output.prompt` and what is written; `draw` shows it 20 times a second.

    Ends early, with the text so far kept, when `draw` is interrupted by a press of Stop.
    """

    def say(what: str) -> None:
        output.busy = what
        draw()

    try:
        say("opening the checkpoint…")
        with engines.opened(entry.info.path) as engine:
            output.block_size = engine.checkpoint.config.model.block_size
            with engine.turn(lambda: say("waiting for another generation with this model…")):
                say("reading the prompt…")
                _stream(engine, output, draw)
    except DgsgptError as error:
        output.problem = told(error, entry)
    finally:
        output.busy = ""
    draw()


def _stream(engine: engines.Engine, output: Output, draw: Callable[[], None]) -> None:
    from dgsgpt.generation import stream

    opened, drawn, written = engine.checkpoint, 0.0, output.stats
    before = list(written.ids) if written else []
    with stream(opened.model, opened.tokenizer, output.prompt, written=before, **output.settings) as pieces:
        if written:
            pieces.stats.ids += before
            pieces.stats.nats += written.nats
            output.text = ""  # it comes again as the first piece
        output.stats = pieces.stats
        for piece in pieces:
            output.text += piece
            now = time.monotonic()
            # A long text is resent whole with each frame: fewer frames keep the browser fluent.
            if now - drawn >= (_FRAME_S if len(output.text) < _LONG_TEXT else _SLOW_FRAME_S):
                output.busy, drawn = "writing…", now
                draw()


def look(entry: Entry, output: Output, draw: Callable[[], None]) -> None:
    """Read what else could have stood at each token of a text that is written; `draw` as in `write`.

    An interruption leaves `looking` set; the next run may look again, or `give_up`.
    """
    from dgsgpt.inspect.tokens import read_choices

    stats = output.stats
    assert stats is not None, "only what was written can be looked at"
    found: list[Choice] = []
    output.looking = True
    try:
        with engines.opened(entry.info.path) as engine, engine.turn(draw):
            opened, drawn = engine.checkpoint, time.monotonic()
            for part in read_choices(opened.model, opened.tokenizer, output.prompt, stats.ids):
                found += part
                now = time.monotonic()
                if now - drawn >= _SLOW_FRAME_S:
                    output.busy, drawn = (
                        f"reading the alternatives, {fmt.percent(len(found) / len(stats.ids), 0)}…",
                        now,
                    )
                    draw()
    except DgsgptError:  # deleted or damaged since: the text stays, without alternatives
        found = []
    finally:
        output.busy = ""
    output.choices, output.looking = found, False


def give_up(outputs: Sequence[Output]) -> None:
    """Do without the alternatives that were being read when Stop was pressed."""
    for output in outputs:
        if output.looking:
            output.choices, output.looking = [], False


def unread(output: Output) -> bool:
    """Whether a text has tokens whose alternatives are still to be read."""
    return output.choices is None and output.stats is not None and bool(output.stats.ids)


# ---------------------------------------------------------------- going on from a text
def continued(output: Output, settings: dict[str, Any]) -> Output:
    """The same text, to be written on by `settings` with its own seed, as if it had never stopped."""
    assert output.stats is not None, "only what was written can be continued"
    return _following(output, settings, output.stats.ids, output.stats.nats, output.text)


def branched(output: Output, at: int, token: int, text: str, settings: dict[str, Any]) -> Output | None:
    """The text up to token `at` with `token` in its place, to be written on; `text` is what that reads.

    None when it was not among the alternatives there.
    """
    stats, choices = output.stats, output.choices or []
    if stats is None or not 0 <= at < min(len(choices), len(stats.ids)):
        return None
    nats = [-math.log(max(share, 1e-300)) for other, share in choices[at].likeliest if other == token]
    if not nats:
        return None
    made = _following(output, settings, [*stats.ids[:at], token], [*stats.nats[:at], nats[0]], text)
    made.branched_at = at
    return made


def _following(
    output: Output, settings: dict[str, Any], ids: Sequence[int], nats: Sequence[float], text: str
) -> Output:
    assert output.stats is not None
    seed = output.stats.seed
    stats = replace(
        output.stats, tokens=0, seconds=0.0, first_token_s=None, finish_reason=None, ids=list(ids), nats=list(nats)
    )
    before, depth = output, 1
    while before.before is not None and depth < _MOST_BEFORE:
        before, depth = before.before, depth + 1
    before.before = None
    return replace(
        output, settings={**settings, "seed": seed}, text=text, stats=stats, problem=None, choices=None, before=output
    )


# ---------------------------------------------------------------- showing
_TEXT = (
    '<div style="font-size:15px;line-height:27px;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate" '
    'aria-live="off"><span style="color:{}">{}</span>{}</div>'
)


def text_html(
    prompt: str, written: str, color: str = "", split_at: int | None = None, split_end: int | None = None
) -> Html:
    """Prompt grey, new text normal, never read as markup; a bar in `color` where it begins to differ.

    What differs first is tinted: up to the character `split_end`, or the whole word at the bar.
    """
    body = esc(written)
    if split_at is not None:
        start = min(split_at, len(written))
        word = re.match(r"\s*\S*", written[start:])
        end = max(start, split_end) if split_end is not None else start + len(word[0] if word else "")
        mark = markup(
            '<span style="border-left:2px solid {};background:{};border-radius:0 3px 3px 0">{}</span>',
            color, rgba(color, 0.14), written[start:end],
        )  # fmt: skip
        body = markup("{}{}{}", written[:start], mark, written[end:])
    return markup(_TEXT, c("ink3"), prompt, body)


def output_html(title: object, value: object, body: object, remark: object, problem: str | None = None) -> Html:
    """The card of a text: heading with a value right, the text, and a grey remark or what went wrong."""
    return markup("{}{}{}", heading_html(title, value, 8), body, remark_html(remark, problem, 8))


def heading_html(title: object, value: object, below: int = 0) -> Html:
    """The first line of a card: its title, and a value right."""
    return markup(
        '<div style="display:flex;flex-wrap:wrap;align-items:baseline;gap:0 8px;line-height:20px;margin-bottom:{}px">'
        '<span role="heading" aria-level="3" style="font-weight:600;font-size:14px">{}</span>'
        '<span style="margin-left:auto;font-size:13px;color:{}">{}</span></div>',
        below, title, c("ink2"), value,
    )  # fmt: skip


def remark_html(remark: object, problem: str | None = None, above: int = 0) -> Html:
    """The last line of a card: a grey remark, or what went wrong."""
    if problem:
        return markup(
            '<div role="alert" style="font-size:13.5px;line-height:19px;color:{};padding-top:{}px;'
            'overflow-wrap:anywhere">✕ {}</div>',
            c("bad"), above, problem,
        )  # fmt: skip
    return markup(
        '<div style="font-size:12.5px;line-height:17px;color:{};padding-top:{}px">{}</div>', c("ink3"), above, remark
    )


def shown_prompt(prompt: str) -> str:
    """A prompt as it stands before what was written: of a long one the end."""
    return prompt if len(prompt) <= SHOWN_PROMPT else "… " + prompt[-SHOWN_PROMPT:]
