"""A text token by token: coloured by surprise, with the alternatives of each and a way to branch from them.

Nothing that a model wrote is ever read as markup: the component puts all of it on the page as text.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt.ui.markup import Html, join, markup
from dgsgpt.ui.text_view import readable
from dgsgpt.ui.theme import c, palette, rgba
from dgsgpt.ui.token_script import CSS, HTML, JS

if TYPE_CHECKING:
    from dgsgpt.data.tokenizer import Tokenizer
    from dgsgpt.inspect.tokens import Choice

MOST_NATS = 8.0  # from here on a token has the full colour
STRONGEST = 48  # per cent of the accent in it
_DIGITS = 5  # of probabilities on their way to the browser


@dataclass(frozen=True)
class Piece:
    """Whole characters of a text, and the tokens from `start` to `end` that wrote them; no text where a text ended."""

    text: str
    start: int
    end: int


def pieces(tokenizer: Tokenizer, ids: Sequence[int], length: int | None = None) -> list[Piece]:
    """The text of `ids` in pieces, one a token; tokens that end inside a character are joined with the next.

    Of a text that was cut only the first `length` characters are there. A character that is never completed is not.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found: list[Piece] = []
    start, text, left = 0, "", length
    for index, token in enumerate(ids):
        text += decoder.decode(tokenizer.token_bytes(token))
        if decoder.getstate()[0]:  # inside a character
            continue
        ends = token in tokenizer.ends_of_text
        if left is not None:
            text, left = text[:left], left - len(text[:left])
        if text or (ends and index == len(ids) - 1):
            found.append(Piece(text, start, index + 1))
        start, text = index + 1, ""
    if text and left != 0:
        found.append(Piece(text[:left], start, len(ids)))
    return found


def name_of(tokenizer: Tokenizer, token: int) -> str:
    """A token as it is written in the list of alternatives; empty for what ends a text."""
    return "" if token in tokenizer.ends_of_text else readable(tokenizer.token_bytes(token))


def tell(
    tokenizer: Tokenizer, ids: Sequence[int], nats: Sequence[float], choices: Sequence[Choice], length: int | None
) -> dict[str, Any]:
    """What the component draws of a text: its pieces, what each cost, and what else could have been there."""
    found = pieces(tokenizer, ids, length)
    alternatives = [choices[piece.start].likeliest if piece.start < len(choices) else () for piece in found]
    named = {token for some in alternatives for token, _ in some} | {ids[piece.start] for piece in found}
    return {
        "texts": [piece.text for piece in found],
        "starts": [piece.start for piece in found],
        "counts": [piece.end - piece.start for piece in found],
        "nats": [round(sum(nats[piece.start : piece.end]), _DIGITS) for piece in found],
        "own": [[ids[piece.start], round(nats[piece.start], _DIGITS)] for piece in found],
        "alternatives": [[[token, round(share, _DIGITS)] for token, share in some] for some in alternatives],
        "names": {str(token): name_of(tokenizer, token) for token in named},
    }


def component(
    key: str, prompt: str, told: dict[str, Any] | None, *, label: str, mark: int | None = None, color: str = "",
    on_branch: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Draw a text that `tell` told of after its prompt, or nothing (None) to have the component ready for it.

    A click on an alternative calls `on_branch`; `branch_asked` then says which. `mark` is the index of a token that
    gets a bar in `color`.
    """
    data: dict[str, Any] = {"texts": []}
    if told is not None:
        data = {**told, "prompt": prompt, "mark": mark, "color": color, "label": label, "grey": c("ink3")}
        data |= {"most": MOST_NATS, "strongest": STRONGEST}
    data["revision"] = revision(data)
    mount = st.components.v2.component("dgsgpt_tokens", html=HTML, css=CSS, js=JS)
    mount(key=key, data=data, on_branch_change=on_branch)


def revision(data: dict[str, Any]) -> str:
    """A name for these contents: a click that was made on others is not taken for one on them."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:16]


def branch_asked(key: str) -> tuple[int, int] | None:
    """(index, token) of the alternative that was clicked in the component `key`; None where it sent no such thing."""
    state: Any = st.session_state.get(key) or {}
    asked = state.get("branch")
    values = (asked.get("at"), asked.get("token")) if hasattr(asked, "get") else (None, None)
    at, token = (value if isinstance(value, int) and not isinstance(value, bool) else None for value in values)
    return None if at is None or token is None else (at, token)


def legend() -> Html:
    """Five steps of colour from expected to surprising."""
    boxes = join(
        markup(
            '<span style="width:22px;height:10px;background:{};display:inline-block"></span>',
            rgba(palette().run(0), round(STRONGEST / 100 * step / 5, 3)),
        )
        for step in range(5)
    )
    return markup(
        '<span style="display:inline-flex;align-items:center;gap:7px" title="−log p of each token, by the model itself '
        'at temperature 1, before any filter; full colour from {} nats">expected <span style="display:inline-flex;'
        'border-radius:3px;overflow:hidden;border:1px solid {}">{}</span> surprising</span>',
        f"{MOST_NATS:g}", c("line"), boxes,
    )  # fmt: skip


__all__ = ["Piece", "branch_asked", "component", "legend", "name_of", "pieces", "revision", "tell"]
