"""The cards below the table of checkpoints: one checkpoint in full, or two to four side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import CONFIG, METADATA
from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import CheckpointError, ConfigError
from dgsgpt.ui import (
    atoms,
    charts,
    coloured_text,
    comparison,
    engines,
    paired_run,
    quantize_view,
    same_prompt,
    side_by_side,
    theme,
    weights_view,
)
from dgsgpt.ui.atoms import Html, Kpi, markup
from dgsgpt.ui.checkpoint_table import LETTERS, Entry, Verdict, as_figure
from dgsgpt.ui.comparison import Side, sides_of
from dgsgpt.ui.theme import rgba, run_color

MAX_SHOWN = 100_000
# The config takes a row of its own where two columns are left, so that no place beside it is empty.
_FULL_ROW = """<style>
@media (max-width: 1223px) { .stGridCell:has(.st-key-ck_card_config) { grid-column: 1 / -1; } }
</style>"""
_FULL_ROW_ALWAYS = _FULL_ROW.replace("(max-width: 1223px)", "all")


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


def who(letter: str, entry: Entry, verdict: Verdict | None, now: float, color: str = "") -> Html:
    """Letter, run, step and age of a checkpoint, and what its verification gave; its run's colour by default.

    Side by side, two checkpoints of one run need two colours: pass `comparison.sides_of(picked)[i].color`.
    """
    color = color or run_color(entry.run.color_slot)
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
        ("Weights", entry.quantized or "as they were learned"),
        ("Begun from", f"{parent.get('run')}, step {parent.get('step')}" if isinstance(parent, dict) else "scratch"),
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
    letters = LETTERS[: len(picked)] if len(picked) > 1 else " "
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
    (kpis if entry.quantized is None else quantize_view.kpis)(entry)
    grid = st.grid(3, min_column_width=380, border=True)
    first = training if entry.quantized is None else quantize_view.account
    for name, draw in (("training", first), ("made", made_of), ("system", system)):
        with grid.cell(), st.container(key=f"ck_card_{name}", gap="xsmall"):
            draw(entry)
    if entry.quantized is None:
        weights_view.card([Side("", entry, entry.run.color_slot)])


# ---------------------------------------------------------------- side by side
def many(picked: Sequence[Entry]) -> None:
    """Two to four checkpoints side by side; the first, A, is the reference."""
    sides = sides_of(picked)
    configs = [config_of(entry) for entry in picked]
    allowed = comparison.comparable([entry.info.metadata for entry in picked], configs)
    two = len(sides) == 2
    st.html(_FULL_ROW if two else _FULL_ROW_ALWAYS)
    grid = st.grid(3 if two else 2, min_column_width=380, border=True)
    with grid.cell(), st.container(key="ck_card_paired", gap="xsmall"):
        compare, compared = paired_run.card(sides, configs)
    with grid.cell(), st.container(key="ck_card_curves", gap="xsmall"):
        side_by_side.curves(sides, allowed)
        side_by_side.figures(sides, allowed)
        if not two:
            side_by_side.made_of(sides)
    with grid.cell(), st.container(key="ck_card_config", gap="xsmall"):
        side_by_side.settings(sides, [config for config in configs if config])
        if two:
            side_by_side.made_of(sides)
    if compared:
        coloured_text.card(sides, compared.cut)
    write = same_prompt.draw(sides)
    if all(side.entry.quantized is None for side in sides):
        weights_view.card(sides)
    for work in filter(None, (compare, write)):  # at the end, when all that is known already has been drawn
        work()
