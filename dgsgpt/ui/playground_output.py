"""The cards of what was written: figures, the text as it comes, then token by token, and what can be done with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.errors import DgsgptError
from dgsgpt.ui import atoms, copy_button, engines, token_view
from dgsgpt.ui.atoms import Html, markup
from dgsgpt.ui.checkpoint_table import Entry, by_ref
from dgsgpt.ui.playground_prompt import Asked, ask, edit
from dgsgpt.ui.playground_view import Output, heading_html, remark_html, shown_prompt, text_html, unread
from dgsgpt.ui.theme import c, run_color

if TYPE_CHECKING:
    from dgsgpt.data.tokenizer import Tokenizer


# ---------------------------------------------------------------- the line above
def first_difference(outputs: Sequence[Output]) -> int | None:
    """The index of the first token that differs between two texts; None for other than two, or where none does."""
    if len(outputs) != 2:
        return None
    from dgsgpt.generation.together import divergence

    a, b = (output.stats.ids if output.stats else [] for output in outputs)
    return divergence(a, b)


def relation(outputs: Sequence[Output], entries: Sequence[Entry | None]) -> tuple[str, int | None]:
    """How two texts of one prompt and seed relate, and the index of the token where they part."""
    seeds = {(output.prompt, output.settings["seed"]) for output in outputs}
    if len(outputs) != 2 or len(seeds) != 1 or not all(output.stats and output.stats.ids for output in outputs):
        return "", None
    hashes = {entry.text("tokenizer_sha256") if entry else fmt.MISSING for entry in entries}
    if len(hashes) != 1 or fmt.MISSING in hashes:
        return "same seed, but other tokenizers: the noise is not shared, chance alone can part the texts", None
    at = first_difference(outputs)
    said = "no difference" if at is None else f"first difference at token {fmt.number(at + 1)}"
    return f"same seed, shared noise: {said}", at


def _legend(relates: str, coloured: bool) -> None:
    parts = [token_view.legend()] if coloured else []
    parts += [markup("<span>{}</span>", said) for said in (relates,) if said]
    parts += [markup("<span>click a token for its alternatives</span>")] if coloured else []
    atoms.h(
        markup(
            '<div style="display:flex;flex-wrap:wrap;gap:4px 18px;align-items:center;font-size:12.5px;'
            'line-height:18px;color:{};min-height:18px;margin-bottom:-6px">{}</div>',
            c("ink3"), atoms.join(parts),
        )
    )  # fmt: skip


# ---------------------------------------------------------------- the cards
# The component marks itself when it has drawn: until then the plain text stands, so that nothing below moves.
_SWAP = """<style>
[class*="st-key-pg_card_out_"]:has([data-tokens="drawn"]) :has(> [class*="st-key-pg_plain_"]) { display: none; }
[class*="st-key-pg_card_out_"]:not(:has([data-tokens="drawn"])) [class*="st-key-pg_tokens_"] { display: none; }
</style>"""


def cards(outputs: Sequence[Output], found: Sequence[Entry], writing: Sequence[int]) -> list[Callable[[], None]]:
    """Draw what was written so far; return what draws each of them again while it grows.

    Those whose index is in `writing` are about to grow: they are plain text until they are complete.
    """
    entries = [by_ref(found, output.ref) for output in outputs]
    relates, mark = relation(outputs, entries) if not writing else ("", None)
    _legend(relates, any(output.stats and output.stats.ids for output in outputs))
    st.html(_SWAP)
    grid = st.grid(min(2, len(outputs)), min_column_width=400, border=True)
    drawers = []
    for i, (output, entry) in enumerate(zip(outputs, entries, strict=True)):
        if entry is not None:
            output.color = run_color(entry.run.color_slot)  # the page may have become light or dark since
        with grid.cell(), st.container(key=f"pg_card_out_{i}", gap="xsmall"):
            drawers.append(_card(i, output, entry, i in writing, output.branched_at if mark is None else mark))
    return drawers


def _card(i: int, output: Output, entry: Entry | None, grows: bool, mark: int | None) -> Callable[[], None]:
    tokenizer = None if grows else _tokenizer(entry)
    told = None
    if tokenizer is not None and output.stats and output.stats.ids and not unread(output):
        stats = output.stats
        told = token_view.tell(tokenizer, stats.ids, stats.nats, output.choices or [], len(output.text))
    # Elements that are drawn again replace themselves; an empty slot would be seen for a moment.
    head = st.html(heading_html(_name(output), output.headline()))
    with st.container(key=f"pg_plain_{i}"):
        plain = st.html(text_html(shown_prompt(output.prompt), output.text, output.color))
    key = f"pg_tokens_{i}"
    token_view.component(
        key, shown_prompt(output.prompt), told, label=f"What {output.name} wrote, token by token", mark=mark,
        color=output.color, on_branch=lambda: _branch(i, key),
    )  # fmt: skip
    foot = st.html(remark_html(_remark(output), output.problem))

    def draw() -> None:
        head.html(heading_html(_name(output), output.headline()))
        plain.html(text_html(shown_prompt(output.prompt), output.text, output.color))
        foot.html(remark_html(_remark(output), output.problem))

    _actions(i, output, entry, grows)
    return draw


def _tokenizer(entry: Entry | None) -> Tokenizer | None:
    try:
        return engines.tokenizer(entry.info.path) if entry else None
    except DgsgptError:  # deleted or damaged since it wrote: the text is shown plain
        return None


def _name(output: Output) -> Html:
    letter = markup('<span style="color:{}">{}</span>&nbsp; ', output.color, output.letter) if output.letter else ""
    return markup("{}{}", letter, output.name)


def _remark(output: Output) -> str:
    stats = output.stats
    if output.busy or stats is None or not stats.ids:
        return output.remark()
    parts = [fmt.plural(len(stats.ids), "token"), output.remark()]
    if output.branched_at is not None:
        parts.append(f"branched at token {fmt.number(output.branched_at + 1)}")
    return " · ".join(parts)


# ---------------------------------------------------------------- what can be done
def _branch(i: int, key: str) -> None:
    if asked := token_view.branch_asked(key):
        ask(Asked("branch", i, *asked))


def _back(i: int) -> None:
    outputs: list[Output] = st.session_state.get("pg_outputs", [])
    if i < len(outputs) and (before := outputs[i].before):
        outputs[i] = before


def _actions(i: int, output: Output, entry: Entry | None, grows: bool) -> None:
    """Continue, edit, go back, copy and download."""
    empty = grows or not output.text
    whole = output.prompt + output.text
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"pg_actions_{i}"):
        st.button(
            "Continue", key=f"pg_continue_{i}", type="tertiary", icon=":material/east:", on_click=ask,
            args=(Asked("continue", i),), disabled=empty or entry is None,
            help="Goes on from where the text ended, by the settings at the left, with its own seed.",
        )  # fmt: skip
        st.button(
            "Edit", key=f"pg_edit_{i}", type="tertiary", icon=":material/edit:", on_click=edit, args=(output,),
            disabled=empty, help="The prompt and this text become the prompt.",
        )  # fmt: skip
        if output.before is not None:
            st.button(
                "Back", key=f"pg_back_{i}", type="tertiary", icon=":material/undo:", on_click=_back, args=(i,),
                disabled=grows, help="The text before it was continued or branched.",
            )  # fmt: skip
        st.space("stretch")
        copy_button.draw(
            f"pg_copy_{i}", whole if len(output.prompt) <= len(shown_prompt(output.prompt)) else output.text
        )
        st.download_button(
            "Download", data=whole.encode, file_name=file_name(output), mime="text/plain", key=f"pg_download_{i}",
            type="tertiary", icon=":material/download:", disabled=empty, on_click="ignore",
        )  # fmt: skip


def file_name(output: Output) -> str:
    """A name for the text's file: of its checkpoint and seed, e.g. `austen-demo-step-500-seed-42.txt`."""
    said = f"{output.ref.replace('@', '-step-')}-seed-{output.settings['seed']}"
    return re.sub(r"[^A-Za-z0-9._-]+", "-", said) + ".txt"


__all__ = ["cards", "file_name", "first_difference", "relation"]
