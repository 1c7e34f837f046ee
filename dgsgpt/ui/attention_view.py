"""The panel that shows where a checkpoint's heads looked, beside which experts it used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.config import ModelConfig
from dgsgpt.inspect.heads import head_name, heads_of, layer_name
from dgsgpt.ui import atoms, charts, looking, routing_view, theme
from dgsgpt.ui.attention_figures import cap_of, heat, strip
from dgsgpt.ui.checkpoint_cards import config_of
from dgsgpt.ui.looking import Subject
from dgsgpt.ui.playground_view import Shown
from dgsgpt.ui.theme import Palette

if TYPE_CHECKING:
    from dgsgpt.inspect.attention import AttentionLook

LAST = (12, 24, 48, 96)
_ASKED = "pg_look_prompt"
_WORDS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight"}


def panel(shown: Shown) -> None:
    """Attention left, routing and the heads of the layer right."""
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", key="pg_look_bar"):
        entry, letter = looking.side(shown, "pg_look_side")
        config = config_of(entry)
        ready = looking.output_of(shown, entry) is not None or looking.was_asked(_ASKED)
        st.space("stretch")
        chosen = _choices(config.model) if config and ready else None
    if config is None:
        atoms.error_card(f"{entry.label}: its config is missing or damaged; choose another checkpoint")
    elif chosen is None:
        looking.ask(
            "Once this checkpoint has written something, you see here where its heads looked and which experts it "
            "used.", "Look at the prompt now", _ASKED,
        )  # fmt: skip
    else:
        looking.attempt(entry, lambda: _draw(looking.subject(shown, entry, letter), config.model, *chosen))


def _choices(model: ModelConfig) -> tuple[int, int, int]:
    """Draw the three choices: how many tokens, the layer, the head."""
    kept = st.session_state
    stay: dict[str, Any] = {"persist_state": "session", "label_visibility": "collapsed"}
    for key, options, default in (
        ("pg_last", LAST, 24), ("pg_layer", range(model.n_layer), model.n_layer // 2),
        ("pg_head", range(model.n_head), 0),
    ):  # fmt: skip
        if kept.get(key) not in options:
            kept[key] = default
    last = st.selectbox("Tokens", LAST, key="pg_last", width=140, format_func="Last {} tokens".format, **stay)
    layer = st.selectbox(
        "Layer", range(model.n_layer), key="pg_layer", width=190 if "B" not in _pattern(model) else 250,
        format_func=lambda i: f"Layer {i}, {layer_name(model, i)}", **stay,
    )  # fmt: skip
    heads = heads_of(model, layer)
    mixed = len({head.window for head in heads}) > 1
    head = st.selectbox(
        "Head", range(model.n_head), key="pg_head", width=240 if mixed else 160, **stay,
        format_func=lambda i: head_name(heads[i], model) + (f", {heads[i].reach}" if mixed else ""),
    )  # fmt: skip
    return int(last), int(layer), int(head)


def _pattern(model: ModelConfig) -> str:
    return model.window.pattern if model.window else ""


def _draw(subject: Subject, model: ModelConfig, last: int, layer: int, head: int) -> None:
    from dgsgpt.inspect.attention import look_at_attention

    look = looking.look(
        subject.entry, ("attention", subject.ids, layer, last),
        lambda opened: look_at_attention(opened.model, opened.tokenizer, subject.ids, layer, last),
    )  # fmt: skip
    palette = theme.palette()
    with st.grid(2, min_column_width=400, border=True) as grid:
        with grid.cell(), st.container(key="pg_card_attention", gap="xxsmall"):
            _card(palette, look, model, head, subject)
        with grid.cell(), st.container(key="pg_card_routing", gap="xxsmall"):
            routing_view.card(palette, subject, model, layer, last)
            _strip_card(palette, look, head)
    looking.command(
        subject.entry, subject.prompt if not subject.written else "", "attention", "--layer", layer, "--last", last
    )


def _card(palette: Palette, look: AttentionLook, model: ModelConfig, head: int, subject: Subject) -> None:
    window = look.heads[head].window
    sees = "every earlier token" if window is None else f"a window of {fmt.number(window)}"
    grey = "; grey is outside it" if look.hidden(head).any() else ""
    atoms.head("Attention", subject.letter, f"row looks at column, {sees}{grey}")
    charts.show(
        heat(palette, look, head), "pg_attention",
        f"Attention of layer {look.layer}, {head_name(look.heads[head], model)}: rows look at columns",
    )  # fmt: skip
    text = "the prompt and what was written" if subject.written else "the prompt"
    note = looking.cut_note(len(look.labels), look.read, look.cut, text)
    atoms.h(
        atoms.markup(
            '<div style="display:flex;flex-wrap:wrap;gap:2px 16px;align-items:center;font-size:12.5px;color:{}">'
            "{}<span>{}</span></div>",
            palette["ink3"], looking.scale_html(f"{fmt.percent(cap_of(look), 0)} and more"), note,
        )
    )  # fmt: skip


def _strip_card(palette: Palette, look: AttentionLook, head: int) -> None:
    sharing = len(look.heads) // len({one.group for one in look.heads})
    share = f"; {_WORDS.get(sharing, str(sharing))} in a row share one key/value head" if sharing > 1 else ""
    atoms.note(f"All heads of layer {look.layer}{share}. Click one to see it.", top=2)
    st.plotly_chart(
        strip(palette, look, head), theme=None, key="pg_strip", width="stretch", on_select=_pick_head,
        selection_mode="points", config={**charts.CONFIG, "displayModeBar": False},
        alt=f"The attention of all heads of layer {look.layer}; the list above chooses one, too",
    )  # fmt: skip


def _pick_head() -> None:
    points = st.session_state["pg_strip"]["selection"]["points"]
    if points:
        st.session_state["pg_head"] = int(points[0]["point_index"])


__all__ = ["LAST", "panel"]
