"""Choices of the Configure page: the profile, the settings that most runs change, the network's smaller ones."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dgsgpt.config import RunConfig
from dgsgpt.format import gib, lr, number, si
from dgsgpt.hardware import Hardware
from dgsgpt.planner import plan, verdict
from dgsgpt.profiles import PROFILE_NAMES, load_profile
from dgsgpt.ui import draft, form
from dgsgpt.ui.atoms import bold, h, head, tag
from dgsgpt.ui.fields import Form, seed, with_value
from dgsgpt.ui.markup import Html, join, markup
from dgsgpt.ui.outlook import recipe_words
from dgsgpt.ui.theme import c

_CONTEXTS = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768]
_WIDTHS = [64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 6144, 8192]
_BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256]
_RATES = [1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 6e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2]
_VOCABULARIES = (1024, 2048, 4096, 8192, 16_384, 32_768)
_TOKENIZERS = {"char": "Characters", "byte": "Bytes", "gpt2": "GPT-2"}


# ---------------------------------------------------------------- profiles
def profile_cards(chosen: str, automatic: str, machine: Hardware) -> None:
    """The four profiles, `chosen` or not, with exact figures and whether each fits into the memory that is free now."""
    grid = st.grid(4, min_column_width=150, gap="xsmall")
    for name in PROFILE_NAMES:
        on = name == chosen
        with (
            grid.cell(),
            st.container(border=True, height="stretch", gap="xsmall", key=f"{'sel' if on else 'card'}_{name}"),
        ):
            h(_profile_figures(name, name == automatic, machine))
            st.button(
                "Selected" if on else "Use",
                key=f"use_{name}",
                width="stretch",
                disabled=on,
                icon=":material/check:" if on else None,
                on_click=draft.use_profile,
                args=(name,),
            )


def _profile_figures(name: str, automatic: bool, machine: Hardware) -> Html:
    profile = load_profile(name)
    model, train, cost = profile.config.model, profile.config.train, plan(profile.config, machine.device)
    fits = verdict(cost.total_bytes, machine.free_bytes) != "over"
    return markup(
        '<div style="display:flex;justify-content:space-between;align-items:center;line-height:20px">'
        '<b style="font-weight:600;font-size:15px">{}</b>{}</div>'
        '<div style="font-size:13px;line-height:19px;color:{}">{}<br>{} × {} · ctx {}<br>batch {} · {}<br>{}</div>'
        '<div style="font-size:12.5px;line-height:18px;margin-top:5px;color:{}">{} {} GiB {}</div>',
        profile.title, tag("automatic", "accent") if automatic else "", c("ink2"), profile.need,
        number(model.n_layer), model.n_embd, number(model.block_size),
        train.micro_batch_size * train.grad_accum_steps, si(cost.params), recipe_words(train),
        c("good" if fits else "warn"), "✓" if fits else "▲", gib(cost.total_bytes),
        "fits" if fits else f"needed, {gib(machine.free_bytes)} free",
    )  # fmt: skip


# ---------------------------------------------------------------- knobs
def knobs(f: Form, corpora: Sequence[str]) -> None:
    """The settings that most runs change, each at a glance."""
    with st.grid(5, min_column_width=140, gap="small") as grid:
        with grid.cell():
            _corpus(f, corpora)
        with grid.cell():
            _tokenizer(f)
        with grid.cell():
            f.ladder("model.block_size", _CONTEXTS, show=number)
        with grid.cell():
            f.number("model.n_layer")
        with grid.cell():
            f.ladder("model.n_embd", _WIDTHS)
        with grid.cell():
            f.number("model.n_head")
        with grid.cell():
            f.ladder("train.micro_batch_size", _BATCHES)
        with grid.cell():
            f.number("train.grad_accum_steps")
        with grid.cell():
            f.ladder("train.lr", _RATES, show=lr)
        with grid.cell():
            f.number("train.steps")


def _corpus(f: Form, corpora: Sequence[str]) -> None:
    path = "data.corpus"
    value = str(form.get(f.values, path) or "")
    key = seed(path, value, "corpus")
    with f.framed(path):
        st.selectbox(
            f.label(path),
            list(corpora) if value in corpora else [*corpora, value],
            key=key,
            accept_new_options=True,
            help=form.SETTINGS[path].help,
            on_change=_write_corpus,
            args=(key,),
        )
        f.problem(path)


def _write_corpus(key: str) -> None:
    draft.override({"data.corpus": (st.session_state[key] or "").strip()})


def _tokenizer(f: Form) -> None:
    kind, vocabulary = "data.tokenizer.kind", "data.tokenizer.vocab_size"
    size = form.get(f.values, vocabulary)
    now = form.get(f.values, kind)
    known = now == "file"  # weights that are there already know one tokenizer only
    options = [("file", 0)] if known else [("bpe", v) for v in with_value(_VOCABULARIES, size)]
    options += [] if known else [(k, 0) for k in _TOKENIZERS]
    key = seed(kind, (now, size if now == "bpe" else 0), "tokenizer")
    label = f.label(kind)
    if not form.differs_within(f.changed, kind):
        label = f.label(vocabulary, form.label_of(kind))
    with f.framed(kind if form.differs_within(f.changed, kind) else vocabulary):
        st.selectbox(
            label,
            options,
            format_func=lambda o: (
                f"BPE {number(o[1])}" if o[0] == "bpe" else _TOKENIZERS.get(o[0], "of the checkpoint")
            ),
            key=key,
            disabled=known,
            help="The weights know this tokenizer only." if known else form.SETTINGS[kind].help,
            on_change=_write_tokenizer,
            args=(key,),
        )
        f.problem(kind)
        if vocabulary in f.problems:  # that it has no effect beside another kind goes without saying: it is not shown
            f.problem(vocabulary)


def _write_tokenizer(key: str) -> None:
    kind, size = st.session_state[key]
    draft.override({"data.tokenizer.kind": kind} | ({"data.tokenizer.vocab_size": size} if kind == "bpe" else {}))


def knob_notes(f: Form, base_title: str, config: RunConfig | None, train_tokens: int | None) -> None:
    """What the knobs amount to, and the way back to the base."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if config is not None:
            total = config.tokens_per_step * config.train.steps
            passes = total / train_tokens if train_tokens else 0
            epochs = f", {number(passes, 1 if passes < 100 else 0)} epochs" if passes else ""
            facts = [
                markup("Effective batch {} tokens", bold(number(config.tokens_per_step))),
                markup("Head size {}", bold(config.model.head_dim)),
                markup("Steps {} = {} tokens{}", bold(number(config.train.steps)), si(total, 2), epochs),
            ]
            spans = join(markup("<span>{}</span>", fact) for fact in facts)
            h(
                markup(
                    '<div style="display:flex;flex-wrap:wrap;gap:4px 22px;font-size:13px;color:{}">{}</div>',
                    c("ink3"),
                    spans,
                ),
                width="content",
            )
        if f.changed:
            label = f":blue[{f.changes} changed · reset to {base_title}]"
            st.button(label, key="reset_all", type="tertiary", on_click=draft.put_all_back)


# ---------------------------------------------------------------- the rest of the network
SMALLER = tuple(
    f"model.{name}"
    for name in ("norm", "mlp", "logit_softcap", "dropout", "qk_norm", "value_residual", "x0_shortcut", "zero_init")
)


def smaller_in_words(values: form.Draft) -> str:
    """The smaller choices in a few words, e.g. `RMSNorm, SwiGLU, no dropout, QK norm`."""
    dropout = form.get(values, "model.dropout")
    words = [form.name_of(form.get(values, path)) for path in SMALLER[:2]]
    words.append(f"dropout {dropout:g}" if isinstance(dropout, float | int) and dropout else "no dropout")
    return ", ".join([*words, *(form.label_of(path) for path in SMALLER[4:] if form.get(values, path) is True)])


def smaller_choices(f: Form) -> None:
    """Norm, feed-forward network and the switches that cost little, in one card."""
    caps = [None, 15.0, 30.0, 50.0]
    with st.container(border=True, key="card_smaller"):
        head("Smaller choices", note="each is explained behind its ?")
        with st.grid(4, min_column_width=150, gap="small") as grid:
            with grid.cell():
                f.choice("model.norm", form.SETTINGS["model.norm"].choices)
            with grid.cell():
                f.choice("model.mlp", form.SETTINGS["model.mlp"].choices)
            with grid.cell():
                f.choice("model.logit_softcap", caps, show=lambda v: "none" if v is None else f"± {v:g}")
            with grid.cell():
                f.ladder("model.dropout", [0.0, 0.05, 0.1, 0.2, 0.3], show=lambda v: f"{v:g}")
            for path in ("qk_norm", "value_residual", "x0_shortcut", "zero_init"):
                with grid.cell():
                    f.switch(f"model.{path}")
