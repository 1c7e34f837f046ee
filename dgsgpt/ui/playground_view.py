"""Writing with a model on a page: the sampling panel, the stream that Stop can end, and how text is shown.

A press of any button makes Streamlit end the running script at the next thing it draws. So whatever must survive is
in the session before it is drawn: an `Output` grows there piece by piece, and a stream that is cut off keeps its text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.errors import DgsgptError
from dgsgpt.ui import atoms, engines
from dgsgpt.ui.atoms import Html, esc, markup, text
from dgsgpt.ui.checkpoint_table import Entry, told
from dgsgpt.ui.theme import c, rgba

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.generation import Stats

PRESETS: dict[str, dict[str, Any]] = {
    "Greedy": {"pg_temp": 0.0, "pg_top_p": 1.0, "pg_top_k": "off"},
    "Even": {"pg_temp": 0.8, "pg_top_p": 0.95, "pg_top_k": 50},
    "Wild": {"pg_temp": 1.2, "pg_top_p": 1.0, "pg_top_k": "off"},
}
TOP_K = ("off", 1, 2, 5, 10, 20, 50, 100, 200, 500)
MAX_NEW_TOKENS, MAX_SEED = 4096, 2**31 - 1
DEFAULTS: dict[str, Any] = {**PRESETS["Even"], "pg_new": 128, "pg_seed": 42, "pg_stop_at": ""}
HISTORY = 12
_FRAME_S, _SLOW_FRAME_S = 0.05, 0.25
_LONG_TEXT = 20_000
_ENDS = {
    "length": "as long as asked for",
    "end_of_text": "the model ended the text",
    "stop": "the stop text came",
}


# ---------------------------------------------------------------- sampling
def seed_state() -> None:
    """Give the sampling settings their defaults where the session has none yet."""
    for key, value in DEFAULTS.items():
        st.session_state.setdefault(key, value)


def preset_of(values: dict[str, Any]) -> str | None:
    """The preset that these settings are, if they are one."""
    return next((name for name, preset in PRESETS.items() if preset.items() <= values.items()), None)


def _apply_preset() -> None:
    chosen = st.session_state["pg_preset"]
    st.session_state.update(PRESETS.get(chosen, {}))


def sampling_panel() -> None:
    """The settings of the sidebar; they live in the session under `pg_…`."""
    seed_state()
    st.session_state["pg_preset"] = preset_of({key: st.session_state[key] for key in PRESETS["Even"]})
    kept: dict[str, Any] = {"persist_state": "session"}
    atoms.h(markup('<div role="heading" aria-level="2" style="font-weight:600;font-size:15px">Sampling</div>'))
    st.segmented_control(
        "Preset", list(PRESETS), key="pg_preset", on_change=_apply_preset, width="stretch",
        label_visibility="collapsed",
    )  # fmt: skip
    st.slider(
        "Temperature", 0.0, 2.0, step=0.05, key="pg_temp", **kept,
        help="Below 1 the likely becomes likelier, above 1 the unlikely. 0 always takes the likeliest token.",
    )  # fmt: skip
    st.slider(
        "Top-p", 0.05, 1.0, step=0.01, key="pg_top_p", **kept,
        help="Only the likeliest tokens that together have this probability. 1 keeps all.",
    )  # fmt: skip
    st.select_slider("Top-k", TOP_K, key="pg_top_k", **kept, help="Only this many of the likeliest tokens.")
    left, right = st.columns(2, gap="xsmall")
    left.number_input("New tokens", 1, MAX_NEW_TOKENS, step=32, key="pg_new", **kept)
    right.number_input("Seed", 0, MAX_SEED, step=1, key="pg_seed", **kept, help="The same seed gives the same text.")
    st.text_input("Stop at", placeholder="e.g. \\n\\n", key="pg_stop_at", **kept)
    greedy = st.session_state["pg_temp"] == 0
    atoms.note(
        "At temperature 0 the seed, top-k and top-p change nothing." if greedy else "Order: temperature, top-k, top-p."
    )


def sampling() -> dict[str, Any]:
    """The settings as `dgsgpt.generation.stream` takes them."""
    state = st.session_state
    top_k, stop = state["pg_top_k"], unescape(state["pg_stop_at"] or "")
    return {
        "max_new_tokens": int(state["pg_new"]),
        "temperature": float(state["pg_temp"]),
        "top_k": None if top_k == "off" else int(top_k),
        "top_p": float(state["pg_top_p"]) if state["pg_top_p"] < 1 else None,
        "seed": int(state["pg_seed"]),
        "stop": stop or None,
    }


def unescape(written: str) -> str:
    r"""`\n`, `\t` and `\\` as a person types them into one line, as the characters they mean."""
    means = {r"\n": "\n", r"\t": "\t", r"\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda found: means[found[0]], written)


def plain_label(text: str, limit: int = 44) -> str:
    """A text as one short line for a label that reads markdown: nothing in it has a meaning there."""
    line = " ".join(text.split())
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
    """Let the model of `entry` go on from `output.prompt`; `draw` shows the output, about 20 times a second.

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

    opened, drawn = engine.checkpoint, 0.0
    with stream(opened.model, opened.tokenizer, output.prompt, **output.settings) as pieces:
        output.stats = pieces.stats
        for piece in pieces:
            output.text += piece
            now = time.monotonic()
            # A long text is resent whole with each frame: fewer frames keep the browser fluent.
            if now - drawn >= (_FRAME_S if len(output.text) < _LONG_TEXT else _SLOW_FRAME_S):
                output.busy, drawn = "writing…", now
                draw()


# ---------------------------------------------------------------- showing
_TEXT = (
    '<div style="font-size:15px;line-height:25px;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate" '
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
    heading = markup(
        '<div style="display:flex;flex-wrap:wrap;align-items:baseline;gap:0 8px;line-height:20px;margin-bottom:8px">'
        '<span role="heading" aria-level="3" style="font-weight:600;font-size:14px">{}</span>'
        '<span style="margin-left:auto;font-size:13px;color:{}">{}</span></div>',
        title, c("ink2"), value,
    )  # fmt: skip
    below = markup(
        '<div style="font-size:12.5px;line-height:17px;color:{};padding-top:8px">{}</div>', c("ink3"), remark
    )
    if problem:
        below = markup(
            '<div role="alert" style="font-size:13.5px;line-height:19px;color:{};padding-top:8px;'
            'overflow-wrap:anywhere">✕ {}</div>',
            c("bad"), problem,
        )  # fmt: skip
    return markup("{}{}{}", heading, body, below)


def show(output: Output, slot: DeltaGenerator, *, title: object = "", split_at: int | None = None) -> None:
    """Draw an output into its slot: heading with figures, text, remark or error."""
    letter = markup('<span style="color:{}">{}</span>&nbsp; ', output.color, output.letter) if output.letter else ""
    heading = markup("{}{}", letter, title or output.name)
    shown = text_html(output.prompt, output.text, output.color, split_at)
    slot.html(output_html(heading, output.figures(), shown, output.remark(), output.problem))


def prompt_note(entry: Entry, prompt: str, block_size: int | None) -> tuple[Html, bool]:
    """The length of a prompt in the checkpoint's tokens, or why it cannot be used, and whether it can."""
    try:
        tokens = len(engines.tokenizer(entry.info.path).encode(prompt))
    except DgsgptError as error:
        return text(f"✕ {told(error, entry)}", "bad", px=13), False
    room = f" of {fmt.number(block_size)}" if block_size else ""
    return text(f"{fmt.number(tokens)} tokens{room}", "ink3", px=13), True
