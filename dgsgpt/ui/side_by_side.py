"""Cards with what is known of two to four checkpoints without opening them: figures, curves, settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.config import RunConfig
from dgsgpt.ui import atoms, charts, comparison, state, theme
from dgsgpt.ui.atoms import markup, text
from dgsgpt.ui.comparison import Side

SAME = "same"
_MANY_SETTINGS = 16


def named(error: Exception, sides: Sequence[Side]) -> str:
    """An error about one of several checkpoints, by the name people know instead of its path."""
    message = str(error)
    for side in sides:
        message = message.replace(str(side.entry.info.path), f"{side.letter} ({side.entry.label})")
    return message


def figures(sides: Sequence[Side], allowed: comparison.Comparable) -> None:
    """The last validation of each, and by how much two differ where that means something."""
    found: list[Sequence[object]] = []
    for row in comparison.rows([side.entry.info.metadata for side in sides], allowed):
        # Neutral on purpose: without an interval a lower figure is not yet a better model.
        gap = atoms.delta(fmt.signed(row.difference, row.digits), None) if row.difference is not None else fmt.MISSING
        found.append((row.label, *(fmt.number(v, row.digits) for v in row.values), *([gap] if len(sides) == 2 else [])))
    letters = [side.letter for side in sides]
    header = ["last validation of each", *letters, *(["A − B"] if len(sides) == 2 else [])]
    atoms.table(found, "minmax(0,1fr)" + " 62px" * len(sides) + " 76px" * (len(sides) == 2), header, align="lrrrrr")
    atoms.note(allowed.note, top=4)


def made_of(sides: Sequence[Side]) -> None:
    """What the checkpoints are made of, as a table."""
    rows = [(label, *(text(v, "ink2") if v == SAME else v for v in values)) for label, *values in made_rows(sides)]
    width = "minmax(0,1fr)" + (" 104px" if len(sides) == 2 else " 62px") * len(sides)
    atoms.table(rows, width, ["made of", *(side.letter for side in sides)], align="lrrrr")


def made_rows(sides: Sequence[Side]) -> list[tuple[str, ...]]:
    """What the checkpoints are made of, one line a fact; `same` where a later one has what A has."""
    picked = [side.entry for side in sides]

    def line(label: str, key: str, write: Callable[[float | None], str]) -> tuple[str, ...]:
        return label, *(write(entry.figure(key)) for entry in picked)

    def source(label: str, key: str, names: Sequence[str]) -> tuple[str, ...]:
        marks = [entry.info.metadata.get(key) for entry in picked]
        later = (SAME if mark and mark == marks[0] else name for mark, name in zip(marks[1:], names[1:], strict=True))
        return label, names[0], *later

    return [
        line("Parameters", "params", fmt.si),
        line("active a token", "active_params", fmt.si),
        line("Tokens seen", "tokens", fmt.si),
        line("Train FLOPs", "flops", fmt.scientific),
        line("Train time", "train_time_s", fmt.duration),
        ("Size on disk", *(fmt.size(entry.info.bytes or None) for entry in picked)),
        source("Data", "data_fingerprint", [comparison.shown(e.info.metadata.get("corpus") or None) for e in picked]),
        source("Tokenizer", "tokenizer_sha256", [entry.text("tokenizer_kind") for entry in picked]),
    ]


def curves(sides: Sequence[Side], allowed: comparison.Comparable) -> None:
    """Validation curves up to each checkpoint over one of four axes, read off where all have been."""
    letters = ", ".join(side.letter for side in sides)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        title = "Validation loss" if allowed.losses else "Bits per byte"
        atoms.h(markup('<div style="font-weight:600;line-height:20px">{}</div>', title), width="content")
        st.space("stretch")
        axis = st.segmented_control(
            "x axis", list(comparison.AXES), default="Step", required=True, label_visibility="collapsed", key="ck_axis",
            persist_state="session",
        )  # fmt: skip
    curves = [
        comparison.Curve(s.letter, s.entry.run.id, s.slot, state.metrics(s.entry.run).frame, s.entry.step)
        for s in sides
    ]
    chart = comparison.validation_chart(theme.palette(), curves, axis or "Step", allowed.metric)
    if not chart.drawn:
        atoms.para("None of them has logged a validation up to here.")
        return
    charts.show(chart.figure, "ck_curves", f"{title} of {letters}")
    atoms.note(chart.note or "No point that all have reached.")


def settings(sides: Sequence[Side], configs: Sequence[RunConfig]) -> None:
    """Settings in which the configs differ; `configs` lacks those that cannot be read."""
    if len(configs) < len(sides):
        atoms.head("Config")
        atoms.para("The config.yaml of one of them is missing or damaged: nothing to compare.", role="bad")
        return
    imported = [side.letter for side in sides if side.entry.imported is not None]
    rows, total = comparison.setting_rows(configs, model_only=bool(imported))
    what = "model setting" if imported else "setting"
    atoms.head("Config", note=f"{fmt.number(len(rows))} of {fmt.plural(total, what)} differ")
    if not rows:
        atoms.para("The same settings: the same run, a repetition, or one network trained differently."
                   if imported else "The same settings: the same run, or a repetition.")  # fmt: skip
    else:
        cells = [(path, *(text(v, "ink3" if v == fmt.MISSING else "ink") for v in values)) for path, *values in rows]
        with st.container(height=430 if len(rows) > _MANY_SETTINGS else "content", border=False):
            header = ["setting", *(side.letter for side in sides)]
            # A wide card keeps the values beside their names.
            width = "minmax(0,1fr) 104px 104px" if len(sides) == 2 else "minmax(0,340px)" + " 120px" * len(sides)
            atoms.table(cells, width, header, align="lrrrr")
    if imported:
        atoms.note(f"{', '.join(imported)} imported: how it was trained is not known, so only the model is compared.")
