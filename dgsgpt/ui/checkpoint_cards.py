"""The cards below the table of checkpoints: one checkpoint in full, or two side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import CONFIG, METADATA
from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import CheckpointError, ConfigError
from dgsgpt.ui import atoms, charts, comparison, engines, state, theme
from dgsgpt.ui.atoms import Html, Kpi, markup, text
from dgsgpt.ui.checkpoint_table import Entry, Verdict, as_figure
from dgsgpt.ui.theme import rgba, run_color

MAX_SHOWN = 100_000
FEW_SETTINGS = 6


# ---------------------------------------------------------------- who
@st.cache_resource(max_entries=64, show_spinner=False)
def _config(path: Path, changed: engines.Stamp) -> RunConfig | None:
    try:
        return load_config(path / CONFIG)
    except ConfigError:  # the card says so; the rest of the page does not depend on it
        return None


def config_of(entry: Entry) -> RunConfig | None:
    """The config kept in the checkpoint; None when it is missing or damaged."""
    try:
        return _config(entry.info.path, engines.stamp(entry.info.path, CONFIG))
    except CheckpointError:
        return None


_WHO = (
    '<div style="display:flex;align-items:center;gap:10px;min-width:0"><span style="width:24px;height:24px;'
    "border-radius:5px;background:{};color:{};font-weight:600;display:inline-flex;align-items:center;"
    'justify-content:center;font-size:13px;flex:none">{}</span><span style="font-weight:600;font-size:15px;'
    'white-space:nowrap;overflow:hidden;text-overflow:ellipsis">{}</span>'
    '<span style="color:{};font-size:13px;white-space:nowrap">{}</span>{}</div>'
)


def who(letter: str, entry: Entry, verdict: Verdict | None, now: float) -> Html:
    """Letter, run, step and age of a checkpoint, and what its verification gave."""
    color = run_color(entry.run.color_slot)
    seal: object = ""
    if entry.info.problem or (verdict and verdict.problem):
        seal = atoms.tag("✕ damaged", "bad")
    elif verdict:
        seal = atoms.tag("✓ verified", "good")
    told = f"step {fmt.number(entry.step)} · {fmt.ago(entry.info.saved_at or None, now)}"
    return markup(_WHO, rgba(color, 0.15), color, letter, entry.run.id, theme.c("ink3"), told, seal)


# ---------------------------------------------------------------- one
def kpis(entry: Entry) -> None:
    """Six figures of one checkpoint."""
    info = entry.figure
    losses = np.asarray(entry.series("recent_losses"), dtype=float)
    color = run_color(entry.run.color_slot)
    val_at = info("val_step")
    validated = f"validated at step {fmt.number(val_at)}" if val_at is not None else ""
    active = info("active_params")
    atoms.kpis(
        [
            Kpi("Val loss", fmt.loss(info("loss_val")), "nats/token", delta=validated or "\u00a0"),
            Kpi("Bits per byte", fmt.loss(info("bpb_val")), delta=_whole_split(entry)),
            Kpi("Perplexity", fmt.perplexity(info("ppl_val")), delta="of the validation text"),
            Kpi(
                "Train loss", fmt.loss(info("loss_train")), spark=atoms.spark(losses, color),
                delta=f"learning rate {fmt.lr(info('lr'))}",
            ),
            Kpi("Tokens seen", fmt.si(info("tokens")), delta=f"{fmt.scientific(info('flops'))} FLOPs"),
            Kpi(
                "Parameters", fmt.si(info("params")),
                delta=f"{fmt.si(active)} active a token" if active != info("params") else "all active",
            ),
        ],
        205,
    )  # fmt: skip


def _whole_split(entry: Entry) -> str:
    found = entry.info.metadata.get("whole_split_eval")
    value = as_figure(found.get("bpb")) if isinstance(found, dict) else None
    return f"{fmt.loss(value)} over the whole split" if value is not None else "\u00a0"


def training(entry: Entry) -> None:
    """The last losses and learning rates, as kept in the checkpoint itself."""
    steps, losses, rates = (entry.series(key) for key in ("recent_steps", "recent_losses", "recent_lrs"))
    color = run_color(entry.run.color_slot)
    palette = theme.palette()
    atoms.head("Training", fmt.loss(entry.figure("loss_train")), "loss before it was saved")
    if len(steps) < 2 or len(steps) != len(losses):
        atoms.para("No history is kept in this checkpoint.")
        return
    charts.show(charts.small(palette, steps, losses, color, "loss", hover=".4f"), "ck_loss", "training loss by step")
    if len(rates) == len(steps):
        atoms.head("Learning rate", fmt.lr(entry.figure("lr")))
        charts.show(charts.small(palette, steps, rates, palette["ink3"], "learning rate"), "ck_lr", "learning rate")


def made_of(entry: Entry) -> None:
    """What the model is and what it learned from."""
    info, parent = entry.figure, entry.info.metadata.get("parent")
    atoms.head("Made of")
    rows: list[tuple[object, object]] = [
        ("Tokenizer", f"{entry.text('tokenizer_kind')}, {fmt.number(info('vocab_size'))} tokens"),
        ("Tokenizer sha256", digest(entry, "tokenizer_sha256")),
        ("Corpus", comparison.shown(entry.info.metadata.get("corpus"))),
        ("Data fingerprint", digest(entry, "data_fingerprint")),
        ("Train time", fmt.duration(info("train_time_s"))),
        ("Size on disk", fmt.size(entry.info.bytes or None)),
        ("Seed", fmt.number(as_figure(entry.run.facts.get("seed")))),
        ("Begun from", str(parent) if parent else "scratch"),
    ]
    atoms.table(rows, "max-content minmax(0,1fr)", align="lr")


def system(entry: Entry) -> None:
    """Machine and versions that made it."""
    atoms.head("System")
    git = entry.info.metadata.get("git")
    commit = f"{str(git.get('commit'))[:10]}{', changed' if git.get('dirty') else ''}" if isinstance(git, dict) else ""
    rows: list[tuple[object, object]] = [
        ("Device", entry.text("device")),
        ("torch", entry.text("torch_version")),
        ("Python", entry.text("python_version")),
        ("dgsgpt", entry.text("dgsgpt_version")),
        ("Source", commit or fmt.MISSING),
        ("Saved", fmt.clock(entry.info.saved_at or None, time.time())),
    ]
    atoms.table(rows, "max-content minmax(0,1fr)", align="lr")
    atoms.note("Opened by anything that reads safetensors; nothing is pickled.")


def digest(entry: Entry, key: str) -> Html:
    """The start of a hash, in fixed width."""
    value = entry.text(key)
    short = value if len(value) <= 14 else f"{value[:12]}…"
    return markup('<span style="font-family:{};font-size:12.5px" title="{}">{}</span>', theme.MONO, value, short)


def sources(picked: Sequence[Entry]) -> None:
    """The checkpoints' own config.yaml and metadata.json, as they are."""
    letters = "AB" if len(picked) > 1 else " "
    with st.expander(f"{CONFIG} and {METADATA}"), st.grid(2, min_column_width=400) as grid:
        for letter, entry in zip(letters, picked, strict=True):
            with grid.cell(), st.container(gap="xsmall"):
                atoms.head(f"{letter} {CONFIG}".strip())
                config = config_of(entry)
                if config:
                    st.code(config.to_yaml(), language="yaml", height=420)
                else:
                    atoms.para(f"{CONFIG} is missing or damaged.", role="bad")
            with grid.cell(), st.container(gap="xsmall"):
                atoms.head(f"{letter} {METADATA}".strip(), note="without the recent_… lists")
                kept = {k: v for k, v in entry.info.metadata.items() if not k.startswith("recent_")}
                st.code(json.dumps(kept, indent=2, ensure_ascii=False)[:MAX_SHOWN], language="json", height=420)


def one(entry: Entry) -> None:
    """Everything known of one checkpoint."""
    kpis(entry)
    grid = st.grid(3, min_column_width=380, border=True)
    for name, draw in (("training", training), ("made", made_of), ("system", system)):
        with grid.cell(), st.container(key=f"ck_card_{name}", gap="xsmall"):
            draw(entry)


# ---------------------------------------------------------------- two
def two(a: Entry, b: Entry) -> None:
    """Losses, curves and settings of two checkpoints, side by side."""
    config_a, config_b = config_of(a), config_of(b)
    allowed = comparison.comparable(a.info.metadata, b.info.metadata, config_a, config_b)
    settings = comparison.setting_rows(config_a, config_b) if config_a and config_b else None
    long = settings is not None and len(settings[0]) > FEW_SETTINGS  # then its card has no room for more
    grid = st.grid(3, min_column_width=380, border=True)
    with grid.cell(), st.container(key="ck_card_losses", gap="xsmall"):
        _losses(a, b, allowed)
        if long:
            _made_of_both(a, b)
    with grid.cell(), st.container(key="ck_card_curves", gap="xsmall"):
        _curves(a, b, allowed)
    with grid.cell(), st.container(key="ck_card_config", gap="xsmall"):
        _settings(settings)
        if not long:
            _made_of_both(a, b)


def _losses(a: Entry, b: Entry, allowed: comparison.Comparable) -> None:
    atoms.head("Figures", note="each from its own last validation")
    rows: list[Sequence[object]] = []
    for row in comparison.rows(a.info.metadata, b.info.metadata, allowed):
        # Neutral on purpose: without an interval a lower figure is not yet a better model.
        gap = atoms.delta(fmt.signed(row.difference, row.digits), None) if row.difference is not None else fmt.MISSING
        rows.append((row.label, fmt.number(row.a, row.digits), fmt.number(row.b, row.digits), gap))
    atoms.table(rows, "1fr 66px 66px 76px", ["validation", "A", "B", "A − B"], align="lrrr")
    atoms.note(allowed.note, top=4)


def _made_of_both(a: Entry, b: Entry) -> None:
    atoms.table(_made_rows(a, b), "1fr 104px 104px", ["made of", "A", "B"], align="lrr")


def _made_rows(a: Entry, b: Entry) -> list[Sequence[object]]:
    def pair(label: str, key: str, write: Any) -> tuple[str, str, str]:
        return label, write(a.figure(key)), write(b.figure(key))

    def same(key: str) -> str:
        left, right = a.info.metadata.get(key), b.info.metadata.get(key)
        return fmt.MISSING if not (left and right) else "same" if left == right else "different"

    data, tokens = same("data_fingerprint"), same("tokenizer_sha256")
    return [
        pair("Parameters", "params", fmt.si),
        pair("active a token", "active_params", fmt.si),
        pair("Tokens seen", "tokens", fmt.si),
        pair("Train FLOPs", "flops", fmt.scientific),
        pair("Train time", "train_time_s", fmt.duration),
        ("Size on disk", fmt.size(a.info.bytes or None), fmt.size(b.info.bytes or None)),
        ("Data", comparison.shown(a.info.metadata.get("corpus")), text(data, "ink2")
         if data == "same" else comparison.shown(b.info.metadata.get("corpus"))),
        ("Tokenizer", a.text("tokenizer_kind"), text(tokens, "ink2") if tokens == "same" else b.text("tokenizer_kind")),
    ]  # fmt: skip


def _curves(a: Entry, b: Entry, allowed: comparison.Comparable) -> None:
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        title = "Validation loss" if allowed.losses else "Bits per byte"
        atoms.h(markup('<div style="font-weight:600;line-height:20px">{}</div>', title), width="content")
        st.space("stretch")
        axis = st.segmented_control(
            "x axis", list(comparison.AXES), default="Step", required=True, label_visibility="collapsed", key="ck_axis",
            persist_state="session",
        )  # fmt: skip
    sides = [
        comparison.Side(letter, e.run.id, e.run.color_slot, state.metrics(e.run).frame, e.step)
        for letter, e in (("A", a), ("B", b))
    ]
    chart = comparison.validation_chart(theme.palette(), sides, axis or "Step", allowed.metric)
    if not chart.drawn:
        atoms.para("Neither run has logged a validation up to here.")
        return
    charts.show(chart.figure, "ck_curves", f"{title} of A and B")
    atoms.note(chart.note or "No point that both have reached.")


def _settings(found: tuple[list[tuple[str, str, str]], int] | None) -> None:
    if found is None:
        atoms.head("Config")
        atoms.para("The config.yaml of one of them is missing or damaged: nothing to compare.", role="bad")
        return
    rows, total = found
    atoms.head("Config", note=f"{fmt.number(len(rows))} of {fmt.plural(total, 'setting')} differ")
    if not rows:
        atoms.para("The same settings: the same run, or a repetition.")
        return

    def cell(value: str) -> Html:
        return text(value, "ink3" if value == fmt.MISSING else "ink")

    shown = [(path, cell(x), cell(y)) for path, x, y in rows]
    with st.container(height=430 if len(rows) > 16 else "content", border=False):
        atoms.table(shown, "minmax(0,1fr) 78px 78px", ["setting", "A", "B"], align="lrr")
