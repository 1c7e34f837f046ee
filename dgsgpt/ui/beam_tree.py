"""The tree of a beam search as a drawing: tokens as text in boxes, lines between them as an image behind.

What becomes of a branch is told by a glyph at its end, by the kind of its box and by colour; each token tells its
probability when the pointer is on it.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dgsgpt import format as fmt
from dgsgpt.ui import theme
from dgsgpt.ui.atoms import Html, join, markup, svg_img
from dgsgpt.ui.beam_layout import Kind, Layout, Segment, Tree
from dgsgpt.ui.evaluate_view import visible
from dgsgpt.ui.theme import Palette

CHAR, ROW, BOX, PAD, GAP = 7.5, 27, 21, 5, 20  # pixels; the type is monospaced, so that widths are known here
MAX_CELLS = 28
_AROUND = 2.0 * PAD + 4  # border and rounding
_GLYPH = 26.0
_SIDE = 6
_PROMPT_CELLS = 16

# kind -> glyph at the end of a branch, and its words for the legend
GLYPHS: dict[str, tuple[str, str]] = {
    "end": ("✓", "the model ended the text"),
    "limit": ("■", "cut off at the limit of new tokens"),
    "alive": ("○", "went on, given up later"),
    "pruned": ("×", "given up at once"),
    "cut": ("…", "goes on beyond this drawing"),
}
Bytes = Callable[[int], bytes]


@dataclass(frozen=True)
class Part:
    """Some tokens of a segment that are whole characters together: their text and what the pointer tells."""

    text: str
    told: str


def draw(palette: Palette, layout: Layout, tree: Tree, token_bytes: Bytes, ends: Sequence[int], prompt: str) -> Html:
    """The drawing, in a frame of its own that scrolls."""
    parts = [parts_of(segment, tree, token_bytes, ends) for segment in layout.segments]
    glyphs = [glyph_of(segment, tree, ends) for segment in layout.segments]
    lead = _shorten(visible(prompt)) or "(nothing)"
    cells = [[_cells(visible(_text(tree, at, token_bytes, ends))) for at in s.nodes] for s in layout.segments]
    x = columns(layout, cells, [bool(glyph) for glyph in glyphs], _cells(lead))
    height, looks = max(1, layout.rows) * ROW + 4, _looks(palette)
    boxes = [_box(looks["prompt"], _SIDE, 0, x[1] - GAP - _SIDE, markup('<span title="the prompt">{}</span>', lead))]
    for segment, words, glyph in zip(layout.segments, parts, glyphs, strict=True):
        inner = join(markup('<span title="{}">{}</span>', part.told, part.text) for part in words)
        width = x[segment.last + 1] - x[segment.first] - (GAP if segment.last < layout.depth else 0)
        mark = _mark(palette, segment, glyph)
        boxes.append(_box(looks[segment.kind], x[segment.first], segment.row, width, inner, mark))
    image = svg_img(_lines(palette, layout, tree, x, height), f"position:absolute;left:0;top:0;width:{x[-1]:.0f}px", "")
    return markup(
        '<div role="group" aria-label="tree of the search" tabindex="0" style="overflow:auto;max-height:520px">'
        '<div style="position:relative;width:{}px;height:{}px;font:12.5px/{}px {}">{}{}</div></div>',
        math.ceil(x[-1]), height, BOX - 2, Html(theme.MONO.replace('"', "'")), image, join(boxes),
    )  # fmt: skip


# ---------------------------------------------------------------- measures
def columns(layout: Layout, cells: Sequence[Sequence[int]], marked: Sequence[bool], prompt_cells: int) -> list[float]:
    """Where each depth begins in pixels: the prompt at depth 0, and at the end where the drawing ends.

    `cells` are widths in characters of the tokens of each segment, `marked` ones have a glyph at their end. A column
    is as wide as its widest token, with room for lines where a segment begins.
    """
    widths = [0.0] * (layout.depth + 1)
    extra = [0.0] * (layout.depth + 1)
    for segment, each, mark in zip(layout.segments, cells, marked, strict=True):
        for depth, count in zip(range(segment.first, segment.last + 1), each, strict=True):
            widths[depth] = max(widths[depth], CHAR * min(MAX_CELLS, max(1, count)))
        extra[segment.last] = max(extra[segment.last], _AROUND + GAP + (_GLYPH if mark else 0))
    widths[0], extra[0] = CHAR * prompt_cells, _AROUND + GAP
    x = [float(_SIDE)]
    for width, more in zip(widths, extra, strict=True):
        x.append(x[-1] + width + more)
    return x


def _cells(text: str) -> int:
    """Characters of a monospaced type, of which wide ones take two and those that combine none."""
    return sum(0 if unicodedata.combining(ch) else 2 if unicodedata.east_asian_width(ch) in "WF" else 1 for ch in text)


def _shorten(prompt: str) -> str:
    """The end of a prompt."""
    return prompt if _cells(prompt) <= _PROMPT_CELLS else "…" + prompt[-(_PROMPT_CELLS - 1) :]


# ---------------------------------------------------------------- words
def _text(tree: Tree, at: int, token_bytes: Bytes, ends: Sequence[int]) -> str:
    token = tree[at].token
    return "⟨end⟩" if token in ends else token_bytes(token).decode("utf-8", "backslashreplace")


def parts_of(segment: Segment, tree: Tree, token_bytes: Bytes, ends: Sequence[int]) -> list[Part]:
    """The text of a segment in pieces of whole characters; bytes that are none are written as code."""
    found: list[Part] = []
    held: list[int] = []
    for at in segment.nodes:
        held.append(at)
        data = b"".join(token_bytes(tree[one].token) for one in held)
        last = at == segment.nodes[-1]
        if tree[at].token in ends or last or _is_whole(data):
            text = "".join(_text(tree, one, token_bytes, ends) for one in held)
            if tree[at].token not in ends:
                text = data.decode("utf-8", "backslashreplace")
            found.append(Part(visible(text), _told(held, tree, visible(text))))
            held = []
    return found


def _is_whole(data: bytes) -> bool:
    """Whether no character is cut at the end; bytes that never are text count as whole."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return True


def share(tree: Tree, at: int) -> float:
    """The probability of a token after those before it."""
    parent = tree[at].parent
    return math.exp(min(0.0, tree[at].logprob - (tree[parent].logprob if parent is not None else 0.0)))


def _told(nodes: Sequence[int], tree: Tree, text: str) -> str:
    first, last = tree[nodes[0]].depth, tree[nodes[-1]].depth
    which = f"token {fmt.number(first)}" if first == last else f"tokens {fmt.number(first)} to {fmt.number(last)}"
    return (
        f"“{text}” · probability {probability(math.prod(share(tree, at) for at in nodes))} · {which} · "
        f"log-probability up to here {fmt.number(tree[nodes[-1]].logprob, 3)}"
    )


def probability(value: float) -> str:
    """A probability as a percentage, small ones with a power of ten."""
    return fmt.percent(value) if value >= 0.001 else fmt.scientific(value * 100) + "\u00a0%"


def glyph_of(segment: Segment, tree: Tree, ends: Sequence[int]) -> str:
    """What becomes of the branch that ends with a segment; empty where it goes on to what is shown."""
    if not segment.leaf:
        return ""
    if segment.cut:
        return "cut"
    if segment.kind in ("alive", "pruned"):
        return segment.kind
    return "end" if tree[segment.nodes[-1]].token in ends else "limit"


# ---------------------------------------------------------------- boxes and lines
def _looks(p: Palette) -> dict[str, Html]:
    """The style of a box by its kind."""
    looks = {
        "best": f"background:{p['accentbg']};border:1px solid {p['accent']};color:{p['tintink']};font-weight:600",
        "found": f"background:{p['bg']};border:1px solid {p['accent']};color:{p['ink']}",
        "ended": f"background:{p['bg']};border:1px solid {p['good']};color:{p['ink2']}",
        "alive": f"background:{p['bg']};border:1px dashed {p['ink3']};color:{p['ink2']}",
        "pruned": f"background:{p['bg']};border:1px dotted {p['line']};color:{p['ink3']}",
        "prompt": f"background:{p['idlebg']};border:1px solid {p['idlebg']};color:{p['ink2']}",
    }
    return {kind: Html(style) for kind, style in looks.items()}


_BOX = (
    '<div style="position:absolute;left:{}px;top:{}px;max-width:{}px;height:{}px;box-sizing:border-box;display:flex;'
    'gap:5px"><span style="box-sizing:border-box;height:100%;padding:0 {}px;border-radius:4px;{};white-space:pre;'
    'overflow:hidden;text-overflow:ellipsis">{}</span>{}</div>'
)


def _box(look: Html, x: float, row: int, width: float, inner: Html, mark: object = "") -> Html:
    return markup(_BOX, f"{x:.1f}", row * ROW + 2, f"{width:.1f}", BOX, PAD, look, inner, mark)


def _mark(palette: Palette, segment: Segment, glyph: str) -> Html:
    """The glyph at the end of a branch, with the rank of the text that ends there."""
    if not glyph:
        return Html("")
    sign, words = GLYPHS[glyph]
    role = {"best": "accent", "found": "accent", "ended": "good"}.get(segment.kind, "ink3")
    rank = segment.rank
    return markup(
        '<span title="{}" style="flex:none;color:{};font-weight:600;line-height:{}px;background:{}">{}</span>',
        f"text {rank}: {words}" if rank else words, palette[role], BOX, palette["bg"], f"{sign}{rank or ''}",
    )  # fmt: skip


def _lines(palette: Palette, layout: Layout, tree: Tree, x: Sequence[float], height: int) -> str:
    """From the end of each segment to what follows it, as thick as that is probable; the best on top."""
    c = palette.__getitem__
    strokes = {"best": c("accent"), "found": c("accent"), "ended": c("good"), "alive": c("ink3"), "pruned": c("line")}
    lines: list[tuple[bool, str]] = []
    for segment in layout.segments:
        above = None if segment.parent is None else layout.segments[segment.parent]
        begin, row = (_SIDE, 0) if above is None else (x[above.first], above.row)
        y0, y1 = row * ROW + 2 + BOX / 2, segment.row * ROW + 2 + BOX / 2
        spine, end = x[segment.first] - GAP * 0.55, x[segment.first] + 1
        turn = f"V{y1 - 5:.1f}Q{spine:.1f},{y1:.1f} {spine + 5:.1f},{y1:.1f}" if y1 > y0 else ""
        width = 1 + 2 * share(tree, segment.nodes[0])
        lines.append((
            segment.kind == "best",
            f'<path d="M{begin:.1f},{y0:.1f}H{spine:.1f}{turn}H{end:.1f}" fill="none" '
            f'stroke="{strokes[segment.kind]}" stroke-width="{width:.2f}"/>',
        ))  # fmt: skip
    body = "".join(line for _, line in sorted(lines, key=lambda one: one[0]))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {x[-1]:.0f} {height}" width="{x[-1]:.0f}" '
        f'height="{height}">{body}</svg>'
    )


def legend(present: Sequence[str]) -> Html:
    """Glyphs that occur, with their words."""
    return join((markup("<b>{}</b> {}", *GLYPHS[name]) for name in GLYPHS if name in present), Html("&ensp;·&ensp;"))


def caption(layout: Layout) -> str:
    """How much of the tree is shown, and what is not."""
    shown, every = layout.shown.total(), layout.shown.total() + layout.hidden.total()
    said = [f"{fmt.number(shown)} of {fmt.plural(every, 'token')} looked at"]
    if layout.depth < layout.all_depth:
        said.append(f"the first {fmt.number(layout.depth)} of {fmt.plural(layout.all_depth, 'token')} in depth")
    words: dict[Kind, str] = {
        "alive": "given up later",
        "pruned": "given up at once",
        "ended": "ended but not among the texts given",
    }
    for kind, word in words.items():
        if layout.hidden[kind]:
            every = layout.shown[kind] + layout.hidden[kind]
            said.append(f"{fmt.number(layout.shown[kind])} of {fmt.number(every)} {word}, the likeliest")
    return " · ".join(said)


__all__ = ["GLYPHS", "Part", "caption", "columns", "draw", "glyph_of", "legend", "parts_of", "probability", "share"]
