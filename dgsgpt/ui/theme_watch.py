"""Draws the page anew when the browser changes between light and dark.

Streamlit restyles its own widgets at once but runs no script then, and the product's cards and charts take their
colours in the script. A component is told of a new theme, so this one, which shows nothing, asks for a rerun.
"""

from __future__ import annotations

import streamlit as st

from dgsgpt.ui import theme

KEY = "theme_watch"

_JS = """
function modeOf(element) {
  const color = getComputedStyle(element).getPropertyValue("--st-background-color").trim();
  const probe = document.createElement("canvas").getContext("2d");
  probe.fillStyle = color;
  const hex = probe.fillStyle;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  return red + green + blue < 384 ? "dark" : "light";
}

export default function ({ parentElement, data, setTriggerValue }) {
  const box = parentElement.querySelector(".theme-watch");
  const mode = modeOf(box);
  if (mode === data.mode) { box.asked = null; return; }
  if (box.asked === mode) return;  // asked already: the answer is on its way
  box.asked = mode;
  setTriggerValue("changed", mode);
}
"""


def watch() -> None:
    """Mount the watcher; it takes no room (see `theme.page_css`)."""
    component = st.components.v2.component(
        "dgsgpt_theme_watch", html='<div class="theme-watch"></div>\n', js=_JS, isolate_styles=False
    )
    component(key=KEY, data={"mode": theme.mode()}, on_changed_change=lambda: None)
