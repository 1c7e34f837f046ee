"""Small drawings without axes: curves and bars for cards and rows."""

from __future__ import annotations

import base64

import numpy as np
from numpy.typing import ArrayLike

from dgsgpt.ui.markup import Html, markup
from dgsgpt.ui.theme import c


def svg_img(svg: str, style: str = "", alt: str = "") -> Html:
    """A drawing made by the project as an image (inline svg would be stripped); never from a file of a user."""
    data = base64.b64encode(svg.encode()).decode()
    return markup('<img alt="{}" src="data:image/svg+xml;base64,{}" style="display:block;{}">', alt, data, style)


def spark(
    values: ArrayLike, color: str, *, width: int = 120, height: int = 26, fill: bool = True, style: str = "width:100%"
) -> Html:
    """A small curve without axes; gaps are skipped, fewer than two values give nothing."""
    y = np.asarray(values, dtype=float)
    y = y[np.isfinite(y)]
    if len(y) < 2:
        return Html("")
    x = np.linspace(1.5, width - 3.5, len(y))
    span = float(y.max() - y.min()) or 1.0
    heights = height - 3 - (y - y.min()) / span * (height - 6)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, heights, strict=True))
    area = f'<polygon points="{x[0]:.1f},{height} {points} {x[-1]:.1f},{height}" fill="{color}" fill-opacity="0.10"/>'
    return svg_img(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none">{area if fill else ""}<polyline points="{points}" fill="none" stroke="{color}" '
        f'stroke-width="1.5" stroke-linejoin="round" vector-effect="non-scaling-stroke"/></svg>',
        f"height:{height}px;{style}",
    )


def bar(share: float, role: str = "ink3", height: int = 6) -> Html:
    """A filled bar; `share` between 0 and 1."""
    return markup(
        '<div style="height:{0}px;border-radius:{1}px;background:{2};overflow:hidden">'
        '<div style="width:{3:}%;height:100%;border-radius:{1}px;background:{4}"></div></div>',
        height, height // 2, c("idlebg"), f"{min(1.0, max(0.0, share)) * 100:.1f}", c(role),
    )  # fmt: skip
