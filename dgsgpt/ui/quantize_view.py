"""The dialog that rounds a checkpoint's weights: what it costs and gains is measured and shown before it is kept."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.errors import DgsgptError
from dgsgpt.runs import RUN_ID
from dgsgpt.ui import atoms, dialogs, engines, state
from dgsgpt.ui import checkpoint_table as table
from dgsgpt.ui.atoms import Html, Kpi, markup
from dgsgpt.ui.checkpoint_list import Entry, as_figure, told

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from dgsgpt.quantization.judging import Judgement

KINDS = {"int8": "8 bits", "int4": "4 bits"}
A_ROW = 0
GROUPS = {"int8": (A_ROW, 32, 64, 128, 256), "int4": (32, 64, 128, 256)}
INSTALL = 'pip install "dgsgpt[lowbit]"'
MOST_PARTS = 24
_FRAME_S = 0.1
_COLUMNS = "minmax(110px,1fr) 78px 78px 82px minmax(0,150px)"
_PARTS = "minmax(0,1fr) 62px 76px 76px minmax(0,1.6fr)"


def name_problem(name: str) -> str | None:
    """Why a run cannot have this name; None when it can."""
    if not RUN_ID.fullmatch(name):
        return "A name is 1 to 64 letters, digits, '.', '_' or '-', and begins with a letter or digit."
    if (state.root() / name).exists():
        return f"{name} is there already; choose another name."
    return None


def command(entry: Entry, name: str, kind: str, group: int | None) -> str:
    """The command that does the same."""
    size = [] if group is None or group == GROUPS[kind][0] else ["--group-size", str(group)]
    return shlex.join(["dgsgpt", "quantize", entry.ref, name, "--bits", kind.removeprefix("int"), *size])


# ---------------------------------------------------------------- the dialog
@st.dialog("Quantize", width="large", on_dismiss=dialogs.close)
def quantize_dialog(picked: list[Entry]) -> None:
    """How many bits, what that does to the model, and under which name to keep it."""
    if not picked:
        atoms.para("It is not there any more.")
        return
    entry = picked[0]
    atoms.para(
        f"{entry.label}: the matrices of its blocks are rounded to fewer bits. What that costs and gains is measured "
        "on this machine first; nothing is kept before you say so, and this checkpoint stays as it is."
    )
    kind, group = _choose()
    found: dict[tuple[str, int | None], Judgement] = dialogs.kept().setdefault("judged", {})
    judged = found.get((kind, group))
    asked = bool(dialogs.kept().pop("asked", False))
    if judged is not None:
        _results(judged)
        _keep_field(entry, kind, group, judged)
        return
    if problem := dialogs.problems().get("quantize"):
        atoms.error_card(problem, "Nothing was kept.")
    st.code(command(entry, f"{entry.run.id}-{kind}"[:64], kind, group), language="bash", wrap_lines=True)
    slot = _press(asked)
    if asked:
        _measure(entry, kind, group, slot)
        st.rerun(scope="app")


def _choose() -> tuple[str, int | None]:
    with st.container(horizontal=True, gap="small", vertical_alignment="top"):
        kind = st.segmented_control(
            "Bits of a weight", list(KINDS), default="int8", required=True, format_func=KINDS.__getitem__,
            key="ck_quantize_kind",
        ) or "int8"  # fmt: skip
        group = st.selectbox(
            "Weights that share a scale", GROUPS[kind], key=f"ck_quantize_group_{kind}", width=190,
            format_func=lambda size: "a row" if size == A_ROW else str(size),
            help="Fewer are closer to the original and take more bytes.",
        )  # fmt: skip
    return kind, None if group == A_ROW else group


def _press(running: bool) -> DeltaGenerator:
    """Measure, or Stop while it runs; returns where progress is shown."""
    slot = st.empty()
    if running:
        slot.progress(0.0, text="opening the checkpoint…")  # before torch is imported
    missing = find_spec("torchao") is None
    if missing:
        atoms.note(f"Quantizing needs torchao, which is not here: {INSTALL}", role="warn")
    # One key for both, so that the one takes the other's place at once. A press of Stop needs no answer: any press ends
    # the work at the next thing that is drawn.
    st.button(
        "Stop" if running else "Measure", type="secondary" if running else "primary",
        icon=":material/stop:" if running else ":material/straighten:", key="ck_quantize_measure", disabled=missing,
        on_click=None if running else _ask, help=INSTALL if missing else None,
    )  # fmt: skip
    return slot


def _ask() -> None:
    dialogs.kept()["asked"] = True


def _measure(entry: Entry, kind: str, group: int | None, slot: DeltaGenerator) -> None:
    """Judge one choice; the result, or what is wrong, stays in the dialog."""
    import torch

    from dgsgpt.evaluation import validation_text
    from dgsgpt.quantization.judging import judge

    drawn = 0.0

    def report(stage: str, share: float) -> None:
        nonlocal drawn
        if time.monotonic() - drawn >= _FRAME_S or share in (0.0, 1.0):
            drawn = time.monotonic()
            slot.progress(min(1.0, share), text=f"{stage}…")

    dialogs.problem("quantize", None)
    try:
        with engines.opened(entry.info.path) as engine, engine.turn(lambda: report("waiting for another user", 0.0)):
            data = engine.checkpoint.config.data
            text = validation_text(data.corpus, data.val_fraction)
            name = f"{data.corpus}, validation split"
            made = judge(engine.checkpoint, kind, group, text=text, name=name, progress=report)
    except DgsgptError as error:
        dialogs.problem("quantize", told(error, entry))
    except (MemoryError, torch.OutOfMemoryError):
        dialogs.problem("quantize", "not enough memory for both models; stop a run or close another program")
    else:
        dialogs.kept().setdefault("judged", {})[kind, group] = made


# ---------------------------------------------------------------- what was measured
def _results(judged: Judgement) -> None:
    from dgsgpt.quantization import words

    kind = judged.quantized.plan.kind
    rows = [
        (row.name.capitalize(), row.before, atoms.bold(row.after), _difference(row), atoms.text(row.range, "ink3"))
        for row in words.rows(judged)
    ]
    atoms.head("Before and after", note="on this machine")
    atoms.table(rows, _COLUMNS, ["", "before", kind, "difference", "95 % interval, or turn by turn"], align="lrrrr")
    atoms.para(markup("{}", atoms.join(markup("<div>{}</div>", found) for found in words.findings(judged))))
    atoms.note(" ".join(words.method(judged)))
    with st.expander("Which weights"):
        parts = [
            (
                part.name, fmt.si(part.weights), fmt.size(part.before_bytes),
                fmt.size(part.after_bytes) if part.quantized else atoms.text("as it was", "ink3"),
                atoms.text(part.note, "ink3"),
            )
            for part in judged.quantized.parts
        ]  # fmt: skip
        atoms.table(parts, _PARTS, ["", "weights", "before", kind, ""], align="lrrrl")


def _difference(row: Any) -> Html:
    """A difference with sign and colour; a factor has no arrow of its own."""
    if row.difference.startswith("×") and row.better is not None:
        return atoms.text(row.difference, "good" if row.better else "bad", bold=True)
    return atoms.delta(row.difference, row.better)


def _keep_field(entry: Entry, kind: str, group: int | None, judged: Judgement) -> None:
    name = st.text_input("Keep it as", f"{entry.run.id}-{kind}"[:64], key=f"ck_quantize_name_{entry.ref}_{kind}") or ""
    name = name.strip()
    problem = name_problem(name)
    if problem:
        atoms.field_error(problem)
    if "keep" in dialogs.problems():
        atoms.error_card(dialogs.problems()["keep"], "Nothing was kept.")
    st.code(command(entry, name or "NAME", kind, group), language="bash", wrap_lines=True)
    with st.container(horizontal=True, gap="xsmall"):
        keep = st.button(
            "Keep it", type="primary", icon=":material/save:", key="ck_quantize_keep", disabled=bool(problem)
        )
        leave = st.button("Discard", key="ck_quantize_no")
    if leave:
        dialogs.close()
        st.rerun()
    if keep:
        _keep(entry, name, kind, group, judged)
        st.rerun(scope="app")


def _keep(entry: Entry, name: str, kind: str, group: int | None, judged: Judgement) -> None:
    """Keep it as a run, which is then picked."""
    from dgsgpt.quantization.keep import keep

    dialogs.problem("keep", None)
    try:
        kept = keep(entry.info.path, state.root(), name, kind, group, judged)
    except DgsgptError as error:
        dialogs.problem("keep", told(error, entry))
    else:
        table.repick([f"{kept.run.id}@{entry.step}"])
        dialogs.close()


# ---------------------------------------------------------------- on the page of a quantized one
def line(entry: Entry) -> None:
    """What a quantized checkpoint is good for."""
    if entry.quantized is not None:
        said = "Rounded weights: to write with and to judge, not to train or export."
        atoms.note(markup("{} {}", atoms.tag(entry.quantized, "accent"), said))


def kpis(entry: Entry) -> None:
    """Its figures beside those of the model it was made of, as they were measured when it was made."""
    made = _section(entry.info.metadata, "quantization")
    judged = _section(made, "judged")
    bits, speed = _section(judged, "bpb"), _section(judged, "tokens_per_s")
    before, after = as_figure(made.get("before_bytes")), as_figure(made.get("after_bytes"))
    params = entry.figure("params")
    atoms.kpis(
        [
            Kpi("Bits per byte", fmt.loss(as_figure(bits.get("quantized"))), _before(bits), delta=_interval(bits)),
            Kpi("Weights", fmt.size(after), delta=f"from {fmt.size(before)}" if before else fmt.MISSING),
            Kpi("Speed", f"× {fmt.number(as_figure(speed.get('ratio')), 2)}", _device(speed), delta=_turns(speed)),
            Kpi("Parameters", fmt.si(params), delta=f"{fmt.si(entry.figure('tokens'))} tokens seen"),
        ],
        190,
    )  # fmt: skip


def account(entry: Entry) -> None:
    """Which of its weights are rounded, as its metadata tell."""
    parts = _section(entry.info.metadata, "quantization").get("parts")
    rows = [
        (
            markup('<span title="{}">{}</span>', str(part.get("note", "")), str(part.get("name", ""))[:60]),
            fmt.size(as_figure(part.get("before_bytes"))),
            fmt.size(as_figure(part.get("after_bytes"))) if part.get("quantized") else atoms.text("as it was", "ink3"),
        )
        for part in (parts if isinstance(parts, list) else [])[:MOST_PARTS]
        if isinstance(part, dict)
    ]
    atoms.head("Rounded weights", entry.quantized or "", "with their scales")
    if not rows:
        atoms.para("Its metadata do not tell which.")
        return
    atoms.table(rows, "minmax(0,1fr) 82px 82px", ["", "before", "after"], align="lrr")


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key)
    return found if isinstance(found, dict) else {}


def _before(bits: Mapping[str, Any]) -> str:
    full = as_figure(bits.get("full"))
    return "" if full is None else f"from {fmt.loss(full)}"


def _interval(bits: Mapping[str, Any]) -> str:
    low, high = as_figure(bits.get("low")), as_figure(bits.get("high"))
    if low is None or high is None:
        return "not measured"
    digits = 4 if max(abs(low), abs(high)) >= 0.001 else 6
    return f"{fmt.signed(low, digits)} to {fmt.signed(high, digits)}"


def _turns(speed: Mapping[str, Any]) -> str:
    low, high = as_figure(speed.get("ratio_low")), as_figure(speed.get("ratio_high"))
    if low is None or high is None:
        return "not measured"
    said = "" if low > 1 or high < 1 else ": no difference"
    return f"{fmt.number(low, 2)} to {fmt.number(high, 2)}{said}"


def _device(speed: Mapping[str, Any]) -> str:
    device = speed.get("device")
    return f"on {device[:40]}" if isinstance(device, str) else ""


__all__ = ["account", "command", "kpis", "line", "name_problem", "quantize_dialog"]
