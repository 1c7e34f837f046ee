"""Which experts each token passed: experts by tokens, coloured by the weight of their part in the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.config import ModelConfig, layer_is_moe
from dgsgpt.ui import atoms, charts, looking
from dgsgpt.ui.looking import Subject, tick
from dgsgpt.ui.theme import Palette

if TYPE_CHECKING:
    from dgsgpt.inspect.routing import LayerRouting, RoutingLook

DENSE = (
    "This model is dense: every token passes the same network, so nothing is routed. Turn on “Sparse mixture of "
    "experts” on the Configure page to train one that is, or"
)
TRY = "dgsgpt train configs/demo.yaml --set model.moe.n_expert=8"
_LOADS_UP_TO = 32
_COUNTS = {1: "one expert", 2: "two experts", 3: "three experts", 4: "four experts"}


def layer_with_experts(model: ModelConfig, layer: int) -> int | None:
    """The layer itself if it has experts, else the next that has, else the last; None in a dense model."""
    having = [i for i, sparse in enumerate(layer_is_moe(model)) if sparse]
    return next((i for i in having if i >= layer), having[-1] if having else None)


def heat(palette: Palette, routing: LayerRouting, labels: Sequence[str]) -> go.Figure:
    """Weights of each expert (row) for each token (column), and at the right its share of all choices."""
    count, size = routing.n_expert, len(labels)
    loads = count <= _LOADS_UP_TO
    height = min(520, max(150, count * (20 if count <= 16 else 12) + 66))
    figure = charts.fig(
        palette, height, hovermode="closest", margin={"l": 62, "r": 46 if loads else 6, "t": 4, "b": 58}
    )
    grid, names = routing.grid(), [tick(label) for label in labels]
    said = [[f"“{name}”: expert {e}, weight {fmt.number(float(grid[e, t]), 2)}" for t, name in enumerate(names)]
            for e in range(count)]  # fmt: skip
    figure.add_heatmap(
        z=np.where(grid > 0, grid, np.nan), text=said, colorscale=looking.colorscale(palette), zmin=0,
        zmax=float(routing.weights.max(initial=1e-6)), showscale=False, xgap=1, ygap=1, hoverongaps=False,
        hovertemplate="%{text}<extra></extra>",
    )  # fmt: skip
    axis: dict[str, Any] = {"showgrid": False, "showline": False, "ticks": "", "zeroline": False, "fixedrange": True}
    font = {"size": 10.5 if max(size, count) <= 24 else 9, "color": palette["ink2"]}
    every = -(-size // 48)
    across = list(range(0, size, every))
    figure.update_xaxes(
        **axis, tickvals=across, ticktext=[names[i] for i in across], tickangle=-60, tickfont=font,
        range=[-0.5, size - 0.5],
    )  # fmt: skip
    rows = list(range(0, count, -(-count // _LOADS_UP_TO)))
    figure.update_yaxes(
        **axis, tickvals=rows, ticktext=[f"expert {e}" for e in rows], tickfont=font, range=[-0.5, count - 0.5]
    )
    for e, share in enumerate(routing.load().tolist() if loads else []):
        figure.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=6, y=e, text=fmt.percent(share, 0), showarrow=False,
            font={"size": 10.5, "color": palette["ink3"]},
        )  # fmt: skip
    return figure


def about(look: RoutingLook) -> str:
    """The grey note of the card: what is coloured."""
    return f"gate weight of the {_COUNTS.get(look.per_token, f'{look.per_token} experts')} each token used"


def beside(look: RoutingLook, routing: LayerRouting, asked: int) -> str:
    """The note below: which layer it is where the chosen one is dense, and what else every token passes."""
    parts = [f"Layer {asked} is dense; this is layer {routing.layer}."] if routing.layer != asked else []
    parts += [f"Every token passes {look.shared} too."] if look.shared else []
    return " ".join([*parts, "Right: share of these tokens’ choices." if routing.n_expert <= _LOADS_UP_TO else ""])


def card(palette: Palette, subject: Subject, model: ModelConfig, layer: int, last: int) -> None:
    """The routing of the chosen layer, or of the next that has experts.

    Raises:
        DgsgptError: the checkpoint cannot be opened, or its tokenizer is not the model's.
    """
    at = layer_with_experts(model, layer)
    if at is None:
        atoms.head("Routing", subject.letter)
        atoms.para(atoms.markup("{} run <code>{}</code>.", DENSE, TRY))
        return
    from dgsgpt.inspect.routing import look_at_routing

    look: RoutingLook = looking.look(
        subject.entry, ("routing", subject.ids, last),
        lambda opened: look_at_routing(opened.model, opened.tokenizer, subject.ids, last),
    )  # fmt: skip
    one = next(found for found in look.layers if found.layer == at)
    atoms.head("Routing", subject.letter, about(look))
    alt = f"Expert routing of layer {at}: experts in rows, tokens in columns"
    st.plotly_chart(
        heat(palette, one, look.labels), theme=None, key="pg_routing", width="stretch", alt=alt,
        config={**charts.CONFIG, "displayModeBar": False},  # it would lie on the shares
    )  # fmt: skip
    atoms.h(
        atoms.markup(
            '<div style="display:flex;flex-wrap:wrap;gap:2px 16px;align-items:center;font-size:12.5px;color:{}">'
            "{}<span>{}</span></div>",
            palette["ink3"], looking.scale_html(fmt.number(float(one.weights.max(initial=0)), 2), "0"),
            beside(look, one, layer),
        )
    )  # fmt: skip


__all__ = ["DENSE", "TRY", "about", "beside", "card", "heat", "layer_with_experts"]
