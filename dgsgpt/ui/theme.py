"""The colours of the theme that the browser shows (see `dgsgpt.palette`), and the product's one stylesheet."""

from __future__ import annotations

import streamlit as st

from dgsgpt.palette import DARK as DARK
from dgsgpt.palette import LIGHT as LIGHT
from dgsgpt.palette import MONO as MONO
from dgsgpt.palette import SANS as SANS
from dgsgpt.palette import Mode as Mode
from dgsgpt.palette import Palette as Palette
from dgsgpt.palette import rgba as rgba


def mode() -> Mode:
    """Which of the two themes this browser shows now."""
    return "dark" if st.context.theme.type == "dark" else "light"


def palette() -> Palette:
    """The colours of the theme this browser shows now."""
    return DARK if mode() == "dark" else LIGHT


def c(role: str) -> str:
    """One colour by role, e.g. `c("ink3")`."""
    return palette()[role]


def run_color(slot: int) -> str:
    """A run's colour by the slot stored with it (`run.facts["color_slot"]`)."""
    return palette().run(slot)


def page_css() -> None:
    """The only stylesheet of the product: few rules, none of them forced.

    Keys with meaning: `summary` sticks beside a form, `t_*` has a bold widget label,
    `sel_*` is a card that is chosen, `field_*` a setting with its way back `back_*` in the corner.
    """
    p = palette()
    st.html(f"""<style>
    .stApp {{ font-variant-numeric: tabular-nums; }}
    .stGridCell:has(.st-key-summary) {{ position: sticky; top: 4rem; align-self: start; height: fit-content; }}
    .to-summary {{ display: none; }}
    @media (min-width: 1229px) {{
        .stGridCell:has(.st-key-summary) {{
            max-height: calc(100vh - 9.2rem); overflow-y: auto; scrollbar-width: thin;
        }}
    }}
    @media (max-width: 1228px) {{
        .stGridCell:has(.st-key-summary) {{ grid-column: 1 / -1; }}
        .to-summary {{ display: inline; text-decoration: none; }}
    }}
    .st-key-theme_watch, [data-testid="stLayoutWrapper"]:has(> .st-key-poll_box) {{ position: absolute; }}
    [class*="st-key-t_"] p {{ font-weight: 600; }}
    [class*="st-key-field_"] {{ position: relative; }}
    [class*="st-key-back_"] {{ position: absolute; top: -7px; right: 20px; width: auto; }}
    [class*="st-key-sel_"] {{ border-color: {p["accent"]}; box-shadow: inset 0 0 0 1px {p["accent"]}; }}
    .stApp .stMainBlockContainer {{ padding-inline: 1.75rem; }}
    .stApp [data-testid="stBottomBlockContainer"] {{ padding: .6rem 1.75rem; border-top: 1px solid {p["line"]}; }}
    </style>""")
