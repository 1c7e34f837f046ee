"""Beams on the playground: the likeliest texts after the prompt, with their figures and the tree they come from.

A search runs while the page is drawn, so that any press of a button ends it; what it found lives in the session.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.errors import DgsgptError
from dgsgpt.ui import atoms, beam_layout, beam_tree, engines, theme
from dgsgpt.ui.atoms import Html, join, markup
from dgsgpt.ui.checkpoint_list import Entry, told

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.data.tokenizer import Tokenizer
    from dgsgpt.generation.beam import Beam, BeamResult
    from dgsgpt.ui.playground_view import Shown

MAX_BEAMS, MAX_TOKENS = 32, 512
DEFAULTS: dict[str, Any] = {"bm_n": 4, "bm_penalty": 1.0, "bm_early": "no", "bm_new": 32, "bm_best": 4,
                            "bm_depth": 24, "bm_others": 48}  # fmt: skip
# What is chosen -> the value of the rule, and one line on it.
EARLY: dict[str, tuple[bool | str, str]] = {
    "no": (False, "ends when the best open beam would not beat the worst text found, were it to end now"),
    "yes": (True, "ends as soon as there are as many ended texts as beams"),
    "never": ("never", "ends only when no beam can win at any length: exact for penalties above 0, and slowest"),
}
DEPTHS = (12, 24, 48, 96)
OTHERS = {0: "only the texts", 48: "48 others", 200: "200 others", 1000: "1\u202f000 others"}
_FRAME_S = 0.1
STOPPED = "Stopped before the end: nothing is kept of it."


@dataclass(frozen=True)
class Asked:
    """What is searched for, by which checkpoint."""

    ref: str
    changed: engines.Stamp
    prompt: str
    settings: tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Found:
    """A finished search."""

    asked: Asked
    result: BeamResult
    block_size: int


# ---------------------------------------------------------------- the form
def settings() -> dict[str, Any]:
    """The fields of the form as `BeamSettings` takes them."""
    stay: dict[str, Any] = {"persist_state": "session"}
    kept = st.session_state
    for key, value in DEFAULTS.items():
        kept.setdefault(key, value)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        beams = st.number_input(
            "Beams", 1, MAX_BEAMS, key="bm_n", width=110, **stay,
            help="Texts that are followed at once; more find likelier texts and take longer.",
        )  # fmt: skip
        new = st.number_input("New tokens", 1, MAX_TOKENS, step=8, key="bm_new", width=120, **stay)
        penalty = st.number_input(
            "Length penalty", -5.0, 5.0, step=0.1, key="bm_penalty", width=140, **stay,
            help="A text's score is its log-probability / tokens ^ penalty: above 0 favours long texts, below 0 short "
            "ones; 0 is the plain log-probability.",
        )  # fmt: skip
        kept["bm_best"] = min(kept["bm_best"], int(beams))
        best = st.number_input("Texts shown", 1, int(beams), key="bm_best", width=120, **stay,
                               help="The best of the texts found.")  # fmt: skip
    early = st.radio(
        "Stop early", list(EARLY), key="bm_early", horizontal=True, captions=[words for _, words in EARLY.values()],
        **stay,
    )  # fmt: skip
    return {
        "n_beams": int(beams),
        "max_new_tokens": int(new),
        "length_penalty": float(penalty),
        "early_stopping": EARLY[early or "no"][0],
        "n_best": int(best),
    }


def command(entry: Entry, prompt: str, rules: dict[str, Any]) -> str:
    """The command that searches for the same."""
    early = next(name for name, (value, _) in EARLY.items() if value == rules["early_stopping"])
    words = ["dgsgpt", "sample", entry.ref, "--prompt", prompt, "--beams", str(rules["n_beams"])]
    words += ["--max-new-tokens", str(rules["max_new_tokens"])]
    if rules["length_penalty"] != 1:
        words += ["--length-penalty", f"{rules['length_penalty']:g}"]
    if early != "no":
        words += ["--early-stopping", early]
    if rules["n_best"] != rules["n_beams"]:
        words += ["--n-best", str(rules["n_best"])]
    return shlex.join(words)


def _ask() -> None:
    st.session_state["bm_asked"] = True


def panel(shown: Shown) -> None:
    """The form, the search when it was asked for, and what was found last."""
    go = bool(st.session_state.pop("bm_asked", False))
    with st.container(border=True, gap="xsmall", key="bm_card_form"):
        entry = _which(shown)
        rules = settings()
        try:
            asked = Asked(entry.ref, engines.stamp(entry.info.path), shown.prompt, tuple(rules.items()))
        except DgsgptError as error:
            atoms.para(f"✕ {told(error, entry)}", role="bad")
            return
        slot = _press(go, asked)
        if not go:
            _outcome(asked)
        st.code(command(entry, shown.prompt, rules), "bash", wrap_lines=True)
    if go:
        search(entry, asked, rules, slot)
    found = st.session_state.get("bm_found")
    if isinstance(found, Found):
        _result(found, entry, asked)


def _which(shown: Shown) -> Entry:
    """The checkpoint that searches: of several, one is chosen."""
    if len(shown.picked) < 2:
        return shown.picked[0]
    letters = "ABCDEFGH"[: len(shown.picked)]
    letter = st.segmented_control(
        "Checkpoint", list(letters), default="A", required=True, key="bm_which", persist_state="session"
    )
    return shown.picked[letters.index(letter or "A")]


def _press(running: bool, asked: Asked) -> DeltaGenerator:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.button(
            "Search", type="primary", icon=":material/account_tree:", key="bm_go", on_click=_ask, disabled=running
        )
        # Its press needs no answer: any press ends the search at the next thing it draws.
        st.button("Stop", icon=":material/stop:", key="bm_stop", disabled=not running)
        rules = dict(asked.settings)
        said = f"at most {fmt.plural(rules['max_new_tokens'], 'step')}, each for {fmt.plural(rules['n_beams'], 'beam')}"
        atoms.h(atoms.text(f"{said}, after the prompt above", "ink3", px=13), width="content")
    return st.empty()


def _outcome(asked: Asked) -> None:
    """What became of the last search, if it was this one."""
    at, said = st.session_state.get("bm_said", (None, ""))
    if at == asked and said == STOPPED:
        atoms.note(STOPPED, role="warn")
    elif at == asked and said:
        atoms.para(f"✕ {said}", role="bad")


# ---------------------------------------------------------------- the search
def search(entry: Entry, asked: Asked, rules: dict[str, Any], slot: DeltaGenerator) -> None:
    """Search, then draw the page again; a press of Stop ends it and keeps what was found before."""
    kept = st.session_state
    kept["bm_said"] = (asked, STOPPED)  # what stands there if a press of Stop ends the search
    try:
        kept["bm_found"] = _grow(entry, asked, rules, slot)
        kept["bm_said"] = (asked, "")
    except DgsgptError as error:
        kept["bm_said"] = (asked, told(error, entry))
    st.rerun()


def _grow(entry: Entry, asked: Asked, rules: dict[str, Any], slot: DeltaGenerator) -> Found:
    import torch

    from dgsgpt.generation import BeamSettings, grow_beams

    def waiting() -> None:
        slot.progress(0.0, text="waiting for another generation with this model…")

    slot.progress(0.0, text="opening the checkpoint…")
    with engines.opened(entry.info.path) as engine, engine.turn(waiting):
        opened = engine.checkpoint
        try:
            result = grow_beams(
                opened.model, opened.tokenizer, asked.prompt, BeamSettings(**rules), _reporter(slot, rules["n_beams"])
            )
        except (MemoryError, torch.OutOfMemoryError) as e:
            raise DgsgptError("not enough memory; take fewer beams or new tokens, or stop a run") from e
        return Found(asked, result, opened.config.model.block_size)


def _reporter(slot: DeltaGenerator, beams: int) -> Callable[[int, int], None]:
    """What draws a bar ten times a second; drawing is where a press of Stop ends the search."""
    drawn = 0.0

    def report(done: int, most: int) -> None:
        nonlocal drawn
        now = time.monotonic()
        if now - drawn >= _FRAME_S or done == most:
            drawn = now
            slot.progress(done / most, text=f"step {fmt.number(done)} of at most {fmt.number(most)}, {beams} beams")

    return report


# ---------------------------------------------------------------- the result
def _result(found: Found, entry: Entry, asked: Asked) -> None:
    result = found.result
    if found.asked != asked:
        atoms.note("Below is what was found before, of another prompt, checkpoint or settings.", role="warn")
    try:
        tokenizer = engines.tokenizer(entry.info.path) if found.asked.ref == entry.ref else None
    except DgsgptError:
        tokenizer = None
    with st.container(border=True, gap="xsmall", key="bm_card_texts"):
        seconds = max(result.seconds, 1e-9)
        atoms.head(
            "Likeliest texts",
            f"{fmt.plural(result.tokens, 'step')} in {fmt.duration(result.seconds)}",
            f"score = log-probability / tokens ^ {dict(found.asked.settings)['length_penalty']:g} · "
            f"{fmt.si(result.tokens / seconds)} steps/s",
        )
        atoms.h(join(text_row(i, beam, found) for i, beam in enumerate(result.beams, 1)))
        if result.cropped:
            lost = fmt.plural(result.cropped, "token")
            atoms.note(f"The first {lost} of the prompt did not fit the context of {fmt.number(found.block_size)}.")
    if tokenizer is not None:
        _tree(found, tokenizer)


_ROW = (
    '<div style="padding:7px 0 8px;border-top:1px solid {line}"><div style="display:flex;flex-wrap:wrap;gap:0 14px;'
    'font-size:12.5px;line-height:18px;color:{grey}"><b style="font-weight:600;color:{ink}">{rank}</b>'
    "<span>score <b>{score}</b></span><span>log-probability {logprob}</span><span>{length}</span>"
    '<span style="color:{role}">{end}</span></div><div style="font-size:14.5px;line-height:23px;white-space:pre-wrap;'
    'overflow-wrap:anywhere;unicode-bidi:isolate"><span style="color:{grey}">{prompt}</span>{text}</div></div>'
)


def text_row(rank: int, beam: Beam, found: Found) -> Html:
    """One text with its figures; never read as markup."""
    c = theme.c
    prompt = found.asked.prompt
    end = "✓ the model ended it" if beam.finished else "■ cut off at the limit of new tokens"
    return markup(
        _ROW, line=c("grid"), grey=c("ink3"), ink=c("tintink") if rank == 1 else c("ink"),
        rank=f"{rank} · best" if rank == 1 else rank, score=fmt.number(beam.score, 4),
        logprob=fmt.number(beam.logprob, 3), length=fmt.plural(len(beam.ids), "token"),
        role=c("good") if beam.finished else c("ink3"), end=end,
        prompt="…" + prompt[-80:] if len(prompt) > 80 else prompt, text=beam.text,
    )  # fmt: skip


def _tree(found: Found, tokenizer: Tokenizer) -> None:
    stay: dict[str, Any] = {"persist_state": "session", "label_visibility": "collapsed"}
    with st.container(border=True, gap="xsmall", key="bm_card_tree"):
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            atoms.section("The tree", "hover for probabilities", width="content")
            st.space("stretch")
            depth = st.selectbox(
                "Depth", DEPTHS, key="bm_depth", width=170, **stay,
                format_func="the first {} tokens".format,
            )  # fmt: skip
            others = st.selectbox(
                "Branches", list(OTHERS), key="bm_others", width=160, format_func=OTHERS.__getitem__, **stay
            )
        layout = beam_layout.lay_out(found.result, int(depth or 24), int(others or 0))
        ends, tree = tokenizer.ends_of_text, found.result.tree
        atoms.h(beam_tree.draw(theme.palette(), layout, tree, tokenizer.token_bytes, ends, found.asked.prompt))
        present = {beam_tree.glyph_of(segment, tree, ends) for segment in layout.segments}
        atoms.note(beam_tree.legend(sorted(present)))
        atoms.note(f"{beam_tree.caption(layout)} · lines are as thick as what follows is probable")


__all__ = ["DEFAULTS", "EARLY", "Asked", "Found", "command", "panel", "search", "settings", "text_row"]
