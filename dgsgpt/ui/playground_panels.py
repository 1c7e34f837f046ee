"""What can be looked at below the texts of the playground; each panel has a view of its own.

A panel is a function of what the page shows. Only the chosen one runs.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from dgsgpt.ui import attention_view, batch_view, beams_view, surprise_view
from dgsgpt.ui.playground_view import Shown

Panel = Callable[[Shown], None]
PANELS: dict[str, Panel] = {
    "Attention and routing": attention_view.panel,
    "Surprise of a text": surprise_view.panel,
    "Beams": beams_view.panel,
    "Batch": batch_view.panel,
}


def draw(shown: Shown) -> None:
    """The choice of panels, kept in the address, and the chosen one."""
    if not PANELS:
        return
    chosen = st.segmented_control(
        "Look at", list(PANELS), key="look", default=next(iter(PANELS)), required=True, bind="query-params",
        label_visibility="collapsed",
    )  # fmt: skip
    PANELS[chosen](shown)


__all__ = ["PANELS", "Panel", "draw"]
