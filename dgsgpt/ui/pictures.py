"""Small drawings of a config: its layers, attention masks, learning-rate curve and features.

Each is drawn from the real values; where there are more layers, heads or experts than a small picture holds,
it shows the first ones. SVG as an image, in the colours of the theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from dgsgpt.config import ModelConfig, TrainConfig, layer_is_moe, layer_windows
from dgsgpt.train.schedule import rate_share
from dgsgpt.ui.atoms import Html, svg_img
from dgsgpt.ui.labels import name_of
from dgsgpt.ui.rate_curve import curve_steps
from dgsgpt.ui.theme import c

Windows = tuple[int | None, ...]  # of one layer, as `layer_windows` gives them
MAX_LAYERS = 48
MAX_EXPERTS = 8
MAX_HEADS = 16


def _svg(width: float, height: float, shapes: Iterable[str], alt: str) -> Html:
    body = "".join(shapes)
    box = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    return svg_img(f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{body}</svg>', "max-width:100%;height:auto", alt)


def _rect(x: float, y: float, w: float, h: float, role: str, opacity: float, r: float = 1.5) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{r:g}" '
        f'fill="{c(role)}" fill-opacity="{opacity:g}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, role: str, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{c(role)}" stroke-width="{width:g}"/>'
    )


# ---------------------------------------------------------------- the architecture
def mask_cells(n: int, windows: Windows, block_size: int) -> list[list[str]]:
    """An n x n attention mask in the proportions of the real one.

    Each cell is `future`, `seen` by all heads, `half` (seen by half of them, in a layer of kind B), or `outside`.
    """
    reaches = [n if w is None else min(n, max(1, round(n * w / block_size))) for w in windows]

    def look(q: int, k: int) -> str:
        seen_by = sum(q - k < reach for reach in reaches)
        return "future" if k > q else "outside" if not seen_by else "seen" if seen_by == len(reaches) else "half"

    return [[look(q, k) for k in range(n)] for q in range(n)]


def by_reach(windows: Windows) -> tuple[bool, bool]:
    """Sorts the kinds of layers: local, both, full."""
    return windows == (None,), None in windows


def attention_mask(windows: Windows, block_size: int, n: int = 14, cell: float = 5.2) -> Html:
    """Which tokens (columns) each token (row) sees in a layer; windows keep their share of the context."""
    looks = {"seen": ("accent", 0.85), "half": ("accent", 0.45), "outside": ("accent", 0.16), "future": ("ink3", 0.08)}
    shapes = [
        _rect(k * cell, q * cell, cell - 1, cell - 1, *looks[what], r=1)
        for q, row in enumerate(mask_cells(n, windows, block_size))
        for k, what in enumerate(row)
    ]
    seen = ["every earlier token" if w is None else f"the last {w} of {block_size} tokens" for w in windows]
    words = seen[0] if len(seen) == 1 else f"{seen[0]} in half of the heads, {seen[1]} in the others"
    return _svg(math.ceil(n * cell), math.ceil(n * cell), shapes, f"attention sees {words}")


def layers(model: ModelConfig, width: float = 268) -> Html:
    """Layers left to right: attention on top (windows pale, full dark, one above the other for both), network below."""
    count = min(model.n_layer, MAX_LAYERS)
    step = width / max(count, 4)
    gap = 4 if count <= 16 else 1.5
    shapes: list[str] = []
    windows, sparse = layer_windows(model), layer_is_moe(model)
    for i in range(count):
        x, w = i * step, step - gap
        shapes += _attention_of_layer(windows[i], x, w)
        shapes += _experts_of_layer(model, x, w) if sparse[i] else [_rect(x, 30, w, 42, "ink3", 0.45, 2.5)]
    return _svg(width, 74, shapes, f"{model.n_layer} layers")


def _attention_of_layer(windows: Windows, x: float, w: float) -> list[str]:
    """One box, or one for each half of the heads."""
    height = 25 / len(windows)
    return [
        _rect(x, 1 + i * height, w, height - 1, "accent", 0.9 if window is None else 0.4, 2.5)
        for i, window in enumerate(windows)
    ]


def _experts_of_layer(model: ModelConfig, x: float, w: float) -> list[str]:
    moe = model.moe
    assert moe is not None
    shown, rows = min(moe.n_expert, MAX_EXPERTS), -(-min(moe.n_expert, MAX_EXPERTS) // 2)
    beside, before = moe.dense_residual, moe.after_dense  # a dense network that every token passes
    height, top = (34 if beside or before else 44) / rows, 40 if before else 30
    dense = [_rect(x, 64 if beside else 30, w, 8, "ink3", 0.75)] if beside or before else []
    # Spread over the box, as a router would: a picture of k of E, not of a particular choice.
    used = chosen_experts(shown, moe.n_expert_per_token)
    return [
        _rect(
            x + (e % 2) * (w / 2 + 0.5),
            top + (e // 2) * height,
            max(0.8, w / 2 - 0.5),
            height - 2,
            "ink3",
            0.75 if e in used else 0.3,
        )
        for e in range(shown)
    ] + dense


def chosen_experts(n_expert: int, per_token: int) -> set[int]:
    """`per_token` of `n_expert` indices, evenly spread, for pictures."""
    k = min(per_token, n_expert)
    return {(2 * i + 1) * n_expert // (2 * k) for i in range(k)}


def learning_rate_curve(train: TrainConfig, width: float = 230, height: float = 72) -> Html:
    """The learning rate over the whole run, from the schedule that trains it."""
    span = max(1, train.steps - 1)
    points = " ".join(
        f"{2 + (width - 4) * s / span:.1f},{height - 4 - (height - 10) * rate_share(s, train):.1f}"
        for s in curve_steps(train, 120)
    )
    area = (
        f'<polygon points="2,{height - 3} {points} {width - 2},{height - 3}" fill="{c("accent")}" fill-opacity="0.1"/>'
    )
    curve = f'<polyline points="{points}" fill="none" stroke="{c("accent")}" stroke-width="1.8"/>'
    return _svg(width, height, [area, curve], f"learning rate: {name_of(train.schedule.kind)}")


# ---------------------------------------------------------------- the features
def rotary() -> Html:
    """Three of the frequencies that rotary positions turn by."""
    shapes = []
    for i, (opacity, turns) in enumerate(((1.0, 5.0), (0.55, 2.0), (0.25, 0.7))):
        points = " ".join(
            f"{1 + 118 * t / 59:.1f},{14 + 22 * i - 8 * math.sin(2 * math.pi * turns * t / 59):.1f}" for t in range(60)
        )
        shapes.append(
            f'<polyline points="{points}" fill="none" stroke="{c("accent")}" stroke-opacity="{opacity}" '
            f'stroke-width="1.6"/>'
        )
    return _svg(120, 72, shapes, "waves of three frequencies")


def shared_heads(n_head: int, n_kv_head: int) -> Html:
    """Query heads on top, each tied to the key/value head it shares, below."""
    width, group = 120.0, max(1, n_head // max(1, n_kv_head))
    heads = n_head if n_head <= MAX_HEADS else max(group, MAX_HEADS // group * group)
    heads = min(heads, 2 * MAX_HEADS)  # one key/value head for very many queries
    pairs = -(-heads // group)
    step, shapes = (width - 4) / heads, []
    for i in range(heads):
        x, target = 2 + i * step, 2 + (i // group + 0.5) * (width - 4) / pairs
        shapes.append(_line(x + step / 2, 16, target, 56, "line"))
        shapes.append(_rect(x + step * 0.15, 8, step * 0.7, 9, "ink3", 0.55))
    kv_width = min(20.0, (width - 4) / pairs * 0.8)
    shapes += [
        _rect(2 + (g + 0.5) * (width - 4) / pairs - kv_width / 2, 55, kv_width, 11, "accent", 0.85, 2)
        for g in range(pairs)
    ]
    return _svg(width, 74, shapes, f"{n_head} query heads share {n_kv_head} key/value heads")


def expert_router(n_expert: int, per_token: int, always: int = 0) -> Html:
    """A token, sent by the router to a few of the experts; the `always` networks that it passes anyhow stand left."""
    shown, beside = min(n_expert, 16), min(always, 4)
    step = 118.4 / (shown + beside + (0.5 if beside else 0))
    used = chosen_experts(shown, per_token)
    places = [(2 + i * step, True) for i in range(beside)]
    start = 2 + (beside + 0.5) * step if beside else 2
    places += [(start + e * step, e in used) for e in range(shown)]
    shapes = [f'<circle cx="60" cy="10" r="5" fill="{c("ink3")}"/>']
    for x, on in places:
        shapes.append(_line(60, 14, x + step * 0.4, 46, "accent" if on else "line", 1.8 if on else 1))
        shapes.append(_rect(x, 45, step * 0.8, 20, "accent" if on else "ink3", 0.85 if on else 0.22, 2))
    words = f"{per_token} of {n_expert} experts work on a token"
    return _svg(121, 70, shapes, f"{words}, beside {always} that always do" if always else words)


def kept_activations(n_layer: int, mode: str) -> Html:
    """Each layer's input, always kept, and the activations inside it: kept solid, recomputed pale."""
    rows, shapes = min(n_layer, 6), []
    for i in range(rows):
        y = 2 + i * 11.6
        shapes.append(_rect(1, y, 34, 9, "accent", 0.8, 2))
        for e in range(8):
            kept = mode == "none" or (mode == "selective" and e % 2 == 0)
            shapes.append(_rect(40 + e * 9.8, y, 7.6, 9, "good", 0.62 if kept else 0.16, 1))
    return _svg(119, 2 + rows * 11.6, shapes, f"activations kept: {mode}")


def ngram_tables(max_order: int) -> Html:
    """The last token in the middle of its n-grams, each of which looks up a row of its own table."""
    orders = min(max_order, 5)
    count, shapes = orders + 1, []
    step = 78 / count
    for i in range(count):  # the tokens of the text, the latest on the right
        shapes.append(_rect(2 + i * step, 2, step - 3, 12, "ink3", 0.55 if i == count - 1 else 0.25, 2))
    end = 2 + count * step - 3
    for n in range(2, orders + 1):
        y, x = 8 + 52 * (n - 1) / max(1, orders - 1) - 52 / max(1, orders - 1) / 2 + 6, 2 + (count - n) * step
        shapes.append(_rect(x, y, end - x, 3, "accent", 0.85, 1))
        shapes.append(_line(end, y + 1.5, 92, y + 1.5, "line"))
        shapes += [_rect(92 + e * 7, y - 3, 5.5, 9, "accent", 0.85 if e == (n * 2) % 4 else 0.22, 1) for e in range(4)]
    return _svg(121, 74, shapes, f"n-grams of 2 to {max_order} tokens look up a row each")
