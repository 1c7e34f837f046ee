"""What the Train page shows of a run's metrics: figures, small charts, lists. No widgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dgsgpt import format as fmt
from dgsgpt.checkpoint import CheckpointInfo
from dgsgpt.config import RunConfig, TrainConfig
from dgsgpt.metrics import decimate, ema
from dgsgpt.planner import Plan
from dgsgpt.train.schedule import learning_rate
from dgsgpt.ui import atoms, charts
from dgsgpt.ui.atoms import Html, Kpi, join, text
from dgsgpt.ui.loss_data import columns
from dgsgpt.ui.rate_curve import curve_steps
from dgsgpt.ui.state import Metrics
from dgsgpt.ui.theme import Palette, c

SMALL_POINTS = 400
LOWERED = 0.95  # share of the planned rate below which it is no rounding: going back halves it


def span_of(step: int) -> int:
    """Over how many steps a loss is compared: 10, 100, 1000 …, about a tenth of the way or more."""
    return int(10 ** max(1, math.floor(math.log10(max(step, 100) / 2))))


def change_over(metrics: Metrics, weight: float, span: int) -> float | None:
    """How much the smoothed training loss changed over the last `span` steps; None when there are fewer."""
    steps, raw = columns(metrics.columns, "loss/train")
    if not len(steps) or steps[-1] - steps[0] < span:
        return None
    smooth = ema(raw, weight)
    return float(smooth[-1] - np.interp(steps[-1] - span, steps, smooth))


def _spark(values: np.ndarray, color: str) -> Html:
    _, shown = decimate(np.arange(len(values)), values, 120)
    return atoms.spark(shown, color)


def figures(
    metrics: Metrics, weight: float, color: str, plan: Plan | None, tokens: tuple[int, int], memory: tuple[str, int]
) -> list[Kpi]:
    """The six figures on top.

    `tokens` is how many the run is to see and how many its corpus has (0: unknown), `memory` the device's word (GPU,
    CPU) and total bytes.
    """
    return [
        _train_loss(metrics, weight, color),
        _validation(metrics, color),
        _bits_per_byte(metrics, color),
        _throughput(metrics),
        _memory(metrics, plan, *memory),
        _tokens(metrics, *tokens),
    ]


def corpus_tokens(facts: Mapping[str, Any]) -> int:
    """How many tokens a run trains on in one epoch, by its own record; 0 where that is not known yet."""
    data = facts.get("data")
    found = data.get("train_tokens") if isinstance(data, Mapping) else None
    return found if isinstance(found, int) else 0


def _train_loss(metrics: Metrics, weight: float, color: str) -> Kpi:
    smooth = ema(metrics.column("loss/train"), weight)
    span = span_of(int(metrics.last("step") or 0))
    change = change_over(metrics, weight, span)
    difference = (
        atoms.delta(fmt.signed(change), change < 0, f"per {fmt.si(span)} steps") if change is not None else "\u00a0"
    )
    value = fmt.loss(smooth[-1] if len(smooth) else None)
    return Kpi("Train loss", value, aside=f"EMA {weight:g}", spark=_spark(smooth, color), delta=difference)


def _validation(metrics: Metrics, color: str) -> Kpi:
    losses = metrics.column("loss/val")
    last = float(losses[-1]) if len(losses) else None
    difference: object = "measured at the first evaluation" if last is None else "first evaluation"
    if last is not None and len(losses) > 1:
        change = last - float(losses[-2])
        best = float(losses.min())
        remark = "best so far" if last <= best else f"best {fmt.loss(best)}"
        difference = atoms.delta(fmt.signed(change), change < 0, remark)
    ppl = f"ppl {fmt.perplexity(metrics.last('ppl/val'))}" if last is not None else ""
    return Kpi("Validation loss", fmt.loss(last), aside=ppl, spark=_spark(losses, color), delta=difference)


def _bits_per_byte(metrics: Metrics, color: str) -> Kpi:
    bits = metrics.column("bpb/val")
    difference: object = "\u00a0"
    if len(bits) > 1:
        change = float(bits[-1] - bits[-2])
        difference = atoms.delta(fmt.signed(change), change < 0, "vs the one before")
    value, nats = fmt.loss(bits[-1] if len(bits) else None), metrics.last("loss/val")
    per_token = f"{nats / math.log(2) / float(bits[-1]):.1f} B/token" if nats and len(bits) and bits[-1] > 0 else ""
    return Kpi("Bits per byte", value, aside=per_token or "validation", spark=_spark(bits, color), delta=difference)


def _throughput(metrics: Metrics) -> Kpi:
    speed = metrics.column("perf/tokens_per_s")
    steps, seconds = columns(metrics.columns, "time_s")
    per_step = (seconds[-1] - seconds[-2]) / (steps[-1] - steps[-2]) if len(steps) > 1 else None
    value = fmt.si(float(speed[-1])) if len(speed) else fmt.MISSING
    remark = text(f"{fmt.duration(per_step)} per step", "ink3") if per_step else "\u00a0"
    used = metrics.last("perf/mfu")
    aside = f"{fmt.percent(used, 0)} MFU" if used is not None else ""
    return Kpi("Throughput", value, "tok/s", aside, _spark(speed, c("ink3")), remark)


def _memory(metrics: Metrics, plan: Plan | None, device: str, total_bytes: int) -> Kpi:
    peak = metrics.column("mem/peak_bytes")
    used = float(peak[-1]) if len(peak) else None
    said = f"{fmt.gib(plan.total_bytes)} GiB predicted" if plan else "\u00a0"
    if plan and used and device == "GPU":  # the whole process, which a CPU's figure is, was not predicted
        said += f", {fmt.percent(abs(used / plan.total_bytes - 1), 0)} {'more' if used > plan.total_bytes else 'less'}"
    return Kpi(
        f"{device} memory", fmt.gib(used), f"/ {fmt.gib(total_bytes)} GiB", "peak", _spark(peak, c("ink3")), said
    )


def _tokens(metrics: Metrics, target_tokens: int, epoch_tokens: int) -> Kpi:
    tokens = metrics.column("tokens")
    seen = float(tokens[-1]) if len(tokens) else None
    spent = metrics.last("flops")
    remark = f"{fmt.scientific(spent)} FLOPs spent" if spent else "\u00a0"
    aside = f"{fmt.number(seen / epoch_tokens, 2)} epochs" if seen and epoch_tokens else ""
    return Kpi("Tokens seen", fmt.si(seen), f"/ {fmt.si(target_tokens)}", aside, _spark(tokens, c("ink3")), remark)


# ---------------------------------------------------------------- small charts
def small_chart(
    palette: Palette, metrics: Metrics, key: str, color: str, name: str, *, scale: float = 1.0, **options: Any
) -> go.Figure:
    """One metric over steps for a card, decimated with its extremes kept."""
    x, y = decimate(*columns(metrics.columns, key), SMALL_POINTS)
    return charts.small(palette, x, y * scale, color, name, **options)


def rate_chart(palette: Palette, metrics: Metrics, color: str, config: RunConfig) -> go.Figure:
    """The learning rate so far over the planned schedule (dotted)."""
    train = config.train
    steps = np.array(curve_steps(train, min(train.steps, 240)))
    figure = small_chart(palette, metrics, "lr", color, "rate", hover=".2e")
    rates = [learning_rate(int(step), train) for step in steps]
    plan = charts.line(steps + 1, rates, palette["ink3"], "planned", width=1, dash="dot", hovertemplate="%{y:.2e}")
    figure.add_trace(plan)
    charts.set_steps(figure, float(train.steps))
    top, floor = train.lr, train.lr * train.schedule.min_lr_ratio
    ticks = [0.0, top / 2, top] if floor < 0.4 * top else [0.0, top]
    figure.update_yaxes(tickvals=ticks, ticktext=[fmt.lr(v) for v in ticks], range=[-0.04 * top, 1.08 * top])
    return figure


def lowered(metrics: Metrics, train: TrainConfig) -> float | None:
    """By what the planned rates are multiplied since the run went back to a checkpoint; None where they are kept."""
    steps, rates = columns(metrics.columns, "lr")
    planned = learning_rate(int(steps[-1]) - 1, train) if len(steps) else 0.0
    share = float(rates[-1]) / planned if planned > 0 else 1.0
    return float(f"{share:.2g}") if share < LOWERED else None


# ---------------------------------------------------------------- lists
def saved_rows(infos: Sequence[CheckpointInfo], best: CheckpointInfo | None, now: float) -> list[Sequence[object]]:
    """Checkpoints for the card: step, validation loss with `best` or what is wrong, age."""
    rows: list[Sequence[object]] = []
    for info in infos:
        val = info.metadata.get("loss_val")
        value = fmt.loss(val if isinstance(val, int | float) else None)
        if not info.complete:
            mark: object = join((" ", atoms.tag("incomplete", "warn")))
        else:
            mark = join((" ", atoms.tag("best", "good"))) if best and info.path == best.path else ""
        rows.append(
            (fmt.number(info.step), join((value, mark)), fmt.ago(info.saved_at or None, now).removesuffix(" ago"))
        )
    return rows
