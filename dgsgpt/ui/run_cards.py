"""Pieces about runs and the machine that more than one page shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.config import RunConfig
from dgsgpt.hardware import Hardware
from dgsgpt.launch import continue_run, pause_run, resume_run, save_now, stop_run
from dgsgpt.runs import Run, Status
from dgsgpt.supervise import PAUSE_FILE, SAVE_FILE
from dgsgpt.ui import atoms, state
from dgsgpt.ui.atoms import Html, bold, join, markup, text
from dgsgpt.ui.feature_costs import reach
from dgsgpt.ui.theme import c, run_color


# ---------------------------------------------------------------- words
def words(config: RunConfig | None) -> str:
    """A config in a few words, e.g. `4 layers × 256, 2 KV heads, 8 experts`."""
    if config is None:
        return "its config cannot be read"
    m = config.model
    parts = [f"{m.n_layer} layers × {m.n_embd}"]
    if m.n_kv_head < m.n_head:
        parts.append(fmt.plural(m.n_kv_head, "KV head"))
    seen = reach(m)
    if m.window and seen.full < m.n_layer:
        parts.append(f"window {m.window.size}" if seen.local else f"window {m.window.size} in half of the heads")
    if m.moe:
        parts.append(f"{m.moe.n_expert} experts, top-{m.moe.n_expert_per_token}")
    return ", ".join(parts)


def corpus_name(config: RunConfig | None) -> str:
    """The corpus without its folders."""
    return config.data.corpus.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if config else ""


def about(run: Run) -> str:
    """Size, corpus and seed of a run on one line."""
    plan, config = state.planned(run), state.config(run)
    size = f"{fmt.si(plan.params)} params" if plan else ""
    if plan and plan.active_params != plan.params:
        size += f", {fmt.si(plan.active_params)} active"
    return " · ".join(filter(None, (size, corpus_name(config), f"seed {config.train.seed}" if config else "")))


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint's directory."""
    number = checkpoint.name.removeprefix("step_")
    return int(number) if number.isascii() and number.isdigit() else 0


def shown_state(status: Status) -> str:
    """The state as its pill says it: a process that lives and waits is `paused`."""
    return "paused" if status.paused and status.is_live else status.state


def phase(run: Run, status: Status) -> tuple[object, ...]:
    """What decides which buttons a run has: its state, and what it has been asked for and not yet done."""
    return shown_state(status), *((run.path / name).exists() for name in (PAUSE_FILE, SAVE_FILE))


def remaining_s(status: Status, now: float) -> float | None:
    """Seconds left by the trainer's own estimate, counted on since it was written; None when unknown."""
    if status.eta_s is None or shown_state(status) != "running":
        return None
    return max(0.0, status.eta_s - max(0.0, now - (status.heartbeat_at or now)))


def outcome(run: Run, status: Status) -> Html:
    """What became of a run, for one line of a list: its error in red, else what it is and how far it came."""
    if status.state == "failed":
        return text(status.error or "ended with an error", "bad")
    said = words(state.config(run))
    if status.state in ("stopped", "lost"):
        said += f"; {fmt.number(status.step)} of {fmt.number(status.max_steps)} steps"
    return text(said, "ink2")


# Name and remark side by side where there is room, else one above the other.
_NAME = (
    '<div style="display:flex;flex-wrap:wrap;gap:0 14px"><div style="flex:0 0 190px;min-width:0">{}</div>'
    '<div style="flex:1 1 240px;min-width:0;overflow:hidden;text-overflow:ellipsis">{}</div></div>'
)


def row(run: Run, status: Status) -> tuple[Html, ...]:
    """A run that has ended, for a list: state, name and remark, curve, validation loss, when and how long."""
    name = markup(_NAME, atoms.run_name(run.id, run_color(run.color_slot)), outcome(run, status))
    took = fmt.duration(status.elapsed_s) if status.elapsed_s else ""
    when = ", ".join(filter(None, (fmt.ago(status.heartbeat_at or run.created_at, now()), took)))
    val = atoms.esc(fmt.loss(state.summary(run).last.get("loss/val")))
    return atoms.pill(status.state), name, loss_spark(run), val, text(when, "ink3")


def progress(status: Status, now: float, aside: object = "", *, wide: bool = False) -> Html:
    """Bar, percentage, step, time left and end of a run; `wide` puts the bar on its own line."""
    share = status.step / status.max_steps if status.max_steps else 0.0
    left = remaining_s(status, now)
    facts = [
        bold(fmt.percent(share)),
        markup("step {} / {}", bold(fmt.number(status.step)), fmt.number(status.max_steps)),
        markup("{} left, ends {}", bold(fmt.duration(left)), fmt.clock(now + left, now)) if left is not None else "",
        status.message if status.message not in ("training", status.state) and status.state != "queued" else "",
        aside,
    ]
    shown = join(markup("<span>{}</span>", fact) for fact in facts if fact)
    line = (
        '<div style="display:flex;flex-wrap:wrap;gap:2px 18px;align-items:center;font-size:13.5px;line-height:20px;'
        'color:{}{}">{}{}</div>'
    )
    track = atoms.bar(share, "accent" if status.is_live else "ink3")
    if wide:
        return join((track, markup(line, c("ink2"), ";padding-top:6px", "", shown)))
    return markup(line, c("ink2"), "", markup('<div style="flex:1 1 260px">{}</div>', track), shown)


def loss_spark(run: Run, *, width: int = 120, height: int = 20, fill: bool = False, style: str = "") -> Html:
    """The smoothed training loss as a small curve in the run's colour; a dash when there is none yet."""
    shown = state.sparkline(run)
    if not shown:
        return text(fmt.MISSING, "ink3")
    return atoms.spark(
        shown, run_color(run.color_slot), width=width, height=height, fill=fill, style=style or f"width:{width - 10}px"
    )


_RUNNING = (
    '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px 24px;'
    'align-items:center">'
    '<div><div style="display:flex;gap:10px;align-items:center">{}{}</div><div style="padding-top:5px">{}</div></div>'
    '<div>{}</div><div style="text-align:right">{} {}<br>{}</div></div><div style="padding-top:14px">{}</div>'
)


def running(run: Run, status: Status) -> Html:
    """A live run at a glance: name, curve, losses, progress."""
    summary, plan = state.summary(run), state.planned(run)
    losses, val, speed = summary.spark, summary.last.get("loss/val"), summary.last.get("perf/tokens_per_s")
    best = val is not None and val == summary.best_val
    facts = [f"{fmt.si(plan.params)} params" if plan else "", corpus_name(state.config(run))]
    facts.append(f"{fmt.si(speed)} tok/s" if speed else status.message)
    return markup(
        _RUNNING,
        atoms.pill(shown_state(status)),
        text(run.id, px=16, bold=True),
        text(" · ".join(filter(None, facts)), "ink3", px=13),
        loss_spark(run, width=260, height=48, fill=True, style="width:100%"),
        text(fmt.loss(losses[-1] if losses else summary.last.get("loss/train")), px=23, bold=True),
        text("train loss", "ink3"),
        text(f"val {fmt.loss(val)}{', best so far' if best else ''}", "ink2", px=13),
        progress(status, now(), wide=True),
    )


def trouble(run: Run, status: Status) -> None:
    """Show why a run ended badly, what was kept and the end of its log; or that it is silent, or started by itself."""
    if status.state in ("failed", "lost"):
        saved = run.checkpoints()
        step = fmt.number(step_of(saved[-1])) if saved else ""
        kept = f"Saved at step {step}: Resume goes on from there." if saved else "Nothing was saved: it starts again."
        reached = f"Reached step {fmt.number(status.step)} of {fmt.number(status.max_steps)}. "
        atoms.error_card(status.error or "The run ended with an error.", reached + kept, "\n".join(run.log_tail(12)))
    if status.state == "stalled":
        silent = fmt.duration(now() - (status.heartbeat_at or status.started_at or now()))
        last = next(iter(run.log_tail(1)), "")
        said = markup(" The last line of its log is “{}”.", last[:160]) if last else ""
        told = markup("▲ No sign of life for {}, though its process is there.{} Stop and save ends it.", silent, said)
        atoms.note(told, role="warn")
    if run.is_demo and status.is_live:
        atoms.note("The demo, started by itself because there were no runs yet. Stop and save ends it at any time.")


# ---------------------------------------------------------------- buttons
def stop_button(run: Run, status: Status, key: str) -> None:
    """Stop and save; reruns the page once pressed."""
    stopping = status.state == "stopping"
    label = "Stopping…" if stopping else "Stop and save"
    if st.button(label, icon=":material/stop:", key=key, disabled=stopping, help="Finishes the step, saves, ends."):
        state.attempt(stop_run, run)
        st.rerun()


def pause_button(run: Run, status: Status, key: str) -> None:
    """Pause a running process, or let a paused one go on; reruns the page once pressed."""
    asked = (run.path / PAUSE_FILE).exists()
    if status.state != "running":
        return
    label, icon, act = ("Continue", "play_arrow", continue_run) if asked else ("Pause", "pause", pause_run)
    said = "Goes on where it waits." if asked else "Finishes the step, saves and waits; its memory stays taken."
    if st.button(label, icon=f":material/{icon}:", key=key, help=said):
        state.attempt(act, run)
        st.rerun()


def save_button(run: Run, status: Status, key: str) -> None:
    """Ask for a checkpoint after the step in hand; reruns the page once pressed."""
    if shown_state(status) != "running":
        return
    asked = (run.path / SAVE_FILE).exists()
    label, said = ("Saving…" if asked else "Save now"), "Saves a checkpoint after this step and goes on."
    if st.button(label, icon=":material/save:", key=key, disabled=asked, help=said):
        state.attempt(save_now, run)
        st.rerun()


def resume_button(run: Run, key: str, label: str = "", *, kind: str = "secondary") -> None:
    """Go on from the newest checkpoint (from the start where there is none); reruns the page once pressed."""
    saved = run.checkpoints()
    step = step_of(saved[-1]) if saved else None
    said = label or ("Start again" if step is None else f"Resume from step {fmt.number(step)}")
    if st.button(said, icon=":material/play_arrow:" if kind != "tertiary" else None, key=key, type=kind):  # type: ignore[arg-type]
        state.attempt(resume_run, run)
        st.rerun()


# ---------------------------------------------------------------- machine
def machine_rows(found: Hardware) -> list[Sequence[object]]:
    """The machine as rows of label, bar or name, and figure."""

    def label(word: str) -> Html:
        return text(word, "ink2")

    rows: list[Sequence[object]] = []
    for gpu in found.gpus:
        used = gpu.total_bytes - gpu.free_bytes
        heat = f"{gpu.temperature_c}\u00a0°C" if gpu.temperature_c is not None else ""
        rows.append((label("GPU"), gpu.name, heat))
        rows.append((label("in use"), atoms.bar(used / gpu.total_bytes), fmt.gib_of(used, gpu.total_bytes)))
        if gpu.utilization is not None:
            rows.append((label("busy"), atoms.bar(gpu.utilization / 100), fmt.percent(gpu.utilization / 100, 0)))
    if not found.gpus:
        rows.append((label("GPU"), "none found", text("trains on the CPU", "ink3")))
    used = found.ram_total_bytes - found.ram_available_bytes
    full = 1 - found.disk_free_bytes / found.disk_total_bytes if found.disk_total_bytes else 0.0
    rows.append((label("CPU"), found.cpu_name, fmt.plural(found.cpu_cores, "core")))
    rows.append((label("busy"), atoms.bar(found.cpu_percent / 100), fmt.percent(found.cpu_percent / 100, 0)))
    rows.append((label("Memory"), atoms.bar(used / found.ram_total_bytes), fmt.gib_of(used, found.ram_total_bytes)))
    rows.append((label("Disk"), atoms.bar(full), f"{fmt.size(found.disk_free_bytes)} free"))
    return rows


def show_flash() -> None:
    """The error of the last press of a button, if there was one."""
    message = state.take_flash()
    if message:
        atoms.error_card(message)


def now() -> float:
    """The time, in one place."""
    return time.time()
