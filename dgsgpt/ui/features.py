"""A card for each feature of the architecture: what it does and what it costs here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dgsgpt.config import RunConfig, layer_windows
from dgsgpt.format import lr, number
from dgsgpt.planner import plan
from dgsgpt.ui import draft, form, pictures, problems
from dgsgpt.ui import feature_costs as costs
from dgsgpt.ui.atoms import h, para, text
from dgsgpt.ui.draft import Workbench
from dgsgpt.ui.fields import Form, seed
from dgsgpt.ui.markup import Html, markup

_SCALING = "model.rope.scaling"
_PATTERNS = {
    "SSSL": "3 local : 1 full",
    "SL": "alternate",
    "S": "all local",
    "SSSSSL": "5 local : 1 full",
    "B": "both in each layer",
}
_MOE_SAVES_TIME_FROM = 1_000_000_000  # parameters
_MOE_HINT = (
    "It buys parameters, not time: below about a billion of them expect no saving of wall-clock. "
    "dgsgpt bench moe measures it here."
)


# ---------------------------------------------------------------- features
@dataclass(frozen=True)
class Feature:
    """A feature's card: its name for its costs, its setting, what it is compared with, picture and fields.

    `off_settings` are the fields it has while it is off.
    """

    name: str
    title: str
    path: str
    against: str
    picture: Callable[[RunConfig], Html]
    settings: Callable[[Form], None]
    off_settings: Callable[[Form], None] | None = None


def features(f: Form, bench: Workbench, device: str) -> None:
    """One card a feature: toggle, what it does, what it costs here, its few settings, a picture."""
    for feature in _FEATURES:
        pair = costs.variants(f.values, feature.name, bench.parked)
        with st.container(border=True, key=f"card_f_{feature.name}"):
            words, fields, image = st.columns([1.62, 1.3, 0.5], gap="small", vertical_alignment="center")
            shown = _shown(feature, pair, bench)
            with words, st.container(gap="xxsmall"):
                _switch_and_words(f, feature, pair, shown, device)
            with fields:
                if pair.on:
                    feature.settings(f)
                elif feature.off_settings:
                    feature.off_settings(f)
            f.problem(feature.path)
            with image:
                drawn = feature.picture(shown) if shown else ""
                faint = 1 if pair.on else 0.4
                h(markup('<div style="opacity:{};display:flex;justify-content:flex-end">{}</div>', faint, drawn))


def _shown(feature: Feature, pair: costs.Variants, bench: Workbench) -> RunConfig | None:
    """The config with the feature; while the draft is not valid, the one it last was."""
    config = problems.check(pair.with_it).config
    if config is None and bench.valid is not None:
        config = problems.check(costs.variants(form.draft_of(bench.valid), feature.name, bench.parked).with_it).config
    return config


def _switch_and_words(f: Form, feature: Feature, pair: costs.Variants, shown: RunConfig | None, device: str) -> None:
    possible = pair.on or pair.with_it != pair.without
    key = seed(feature.name, pair.on, "t")
    st.toggle(
        f.label(feature.path, feature.title),
        key=key,
        disabled=not possible,
        on_change=_toggle,
        args=(feature.name, key),
    )
    does = costs.explain(feature.name, shown.model, shown.train.gradient_checkpointing) if shown else ""
    cost = costs.cost_of(pair, device)
    if not possible:
        cost = "Off because a single head has nothing to share."
    elif cost:
        cost = f"Against {_against(f, feature)}: {cost}"
    else:
        cost = "What it costs shows when the settings are valid."
    if pair.on and feature.name == "moe" and shown and plan(shown, device).params < _MOE_SAVES_TIME_FROM:
        cost += f" {_MOE_HINT}"
    para(markup("{}{}{}", does, Html("<br>") if does else "", text(cost, "ink3")))


def _against(f: Form, feature: Feature) -> str:
    """What a feature is compared with in this draft."""
    if feature.name == "rope" and form.get(f.values, "model.positions") == "none":
        return "no sign of positions but causality"
    return feature.against


def _toggle(feature: str, key: str) -> None:
    bench, on = draft.opened(), bool(st.session_state[key])
    if feature in ("rope", "window", "moe", "ngram"):
        draft.switch(f"model.{feature}", on)
        return
    pair = costs.variants(bench.draft, feature, bench.parked)
    if not on:
        path = "model.n_kv_head" if feature == "gqa" else "train.gradient_checkpointing"
        bench.parked[feature] = form.get(bench.draft, path)
    bench.change(pair.with_it if on else pair.without)


# ---------------------------------------------------------------- their few settings
def _row() -> Any:
    """Fields side by side."""
    return st.container(horizontal=True, gap="small", vertical_alignment="top", wrap=False)


def _rope_settings(f: Form) -> None:
    with _row():
        with st.container():
            f.ladder("model.rope.theta", [1e4, 1e5, 5e5, 1e6], show=lr)
        with st.container():
            _scaling(f)
        if form.get(f.values, _SCALING) is not None:
            with st.container():
                f.ladder(f"{_SCALING}.factor", [1.0, 2.0, 4.0, 8.0, 16.0, 32.0], show=lambda v: f"× {v:g}")
    for path in f.problems:  # of settings without a field here
        if path.startswith(f"{_SCALING}."):
            f.problem(path)


def _scaling(f: Form) -> None:
    """The kind of context scaling, or none: one list for the section and its kind."""
    kind = f"{_SCALING}.kind"
    key = seed(_SCALING, form.get(f.values, kind) or "none", "kind")
    st.selectbox(
        f.label(kind, "Scaling"),
        ["none", *form.SETTINGS[kind].choices],
        format_func=form.name_of,
        key=key,
        help=f"{form.SETTINGS[_SCALING].help} {form.SETTINGS[kind].help}",
        on_change=_write_scaling,
        args=(key,),
    )


def _write_scaling(key: str) -> None:
    bench, kind = draft.opened(), st.session_state[key]
    if kind == "none":
        draft.switch(_SCALING, False)
        return
    on = form.toggle(bench.draft, _SCALING, True, bench.parked.get(_SCALING))
    bench.change(form.apply(on, {f"{_SCALING}.kind": kind}))


def _positions(f: Form) -> None:
    f.segments("model.positions", "Positions instead")


def _gqa_settings(f: Form) -> None:
    with _row(), st.container():
        f.ladder("model.n_kv_head", costs.fewer_kv_heads(f.values))


def _window_settings(f: Form) -> None:
    context = form.get(f.values, "model.block_size") or 0
    rungs = [2**i for i in range(4, 17) if 2**i <= context] or [context]
    with _row():
        with st.container():
            f.ladder("model.window.size", rungs, show=number)
        with st.container():
            f.choice("model.window.pattern", list(_PATTERNS), show=lambda p: _PATTERNS.get(p, p), typed=_letters)


def _letters(typed: str) -> str:
    """A pattern as typed, in capitals; the schema says what is wrong with any other."""
    return typed.strip().upper()


def _moe_settings(f: Form) -> None:
    factors = [None, 1.0, 1.25, 1.5, 2.0]
    with _row():
        with st.container():
            f.ladder("model.moe.n_expert", [2, 4, 8, 16, 32, 64])
        with st.container():
            f.ladder("model.moe.n_expert_per_token", [1, 2, 4, 8])
        with st.container():
            f.choice("model.moe.capacity_factor", factors, show=lambda v: "dropless" if v is None else f"× {v:g}")
    with _row():
        with st.container():
            f.segments("model.moe.balance")
        with st.container():
            st.space("small")  # in line with the segments, which have their label above
            f.switch("model.moe.dense_residual")


def _ngram_settings(f: Form) -> None:
    with _row():
        with st.container():
            f.ladder("model.ngram.max_order", [2, 3, 4, 5])
        with st.container():
            f.ladder("model.ngram.rows", [2**i for i in range(12, 21, 2)], show=number)


def _checkpointing_settings(f: Form) -> None:
    with _row(), st.container():
        f.choice("train.gradient_checkpointing", ["full", "selective"], label="Recompute")


# ---------------------------------------------------------------- their pictures
def _waves(config: RunConfig) -> Html:
    return pictures.rotary()


def _router(config: RunConfig) -> Html:
    moe = config.model.moe
    if moe is None:
        return Html("")
    return pictures.expert_router(moe.n_expert, moe.n_expert_per_token, moe.n_shared_expert + moe.dense_residual)


def _mask(config: RunConfig) -> Html:
    narrowest = min(layer_windows(config.model), key=pictures.by_reach)
    return pictures.attention_mask(narrowest, config.model.block_size, 14, 5)


_FEATURES = (
    Feature("rope", "Rotary positions (RoPE)", "model.rope", "learned positions", _waves, _rope_settings, _positions),
    Feature(
        "gqa", "Grouped-query attention", "model.n_kv_head", "keys and values for every head",
        lambda k: pictures.shared_heads(k.model.n_head, k.model.n_kv_head), _gqa_settings,
    ),
    Feature("window", "Sliding window", "model.window", "full attention", _mask, _window_settings),
    Feature("moe", "Sparse mixture of experts", "model.moe", "one dense network", _router, _moe_settings),
    Feature(
        "ngram", "N-gram embeddings", "model.ngram", "embeddings of single tokens",
        lambda k: pictures.ngram_tables(k.model.ngram.max_order if k.model.ngram else 3), _ngram_settings,
    ),
    Feature(
        "checkpointing", "Gradient checkpointing", "train.gradient_checkpointing", "keeping all activations",
        lambda k: pictures.kept_activations(k.model.n_layer, k.train.gradient_checkpointing), _checkpointing_settings,
    ),
)  # fmt: skip
