"""Where a draft does not fit what is free: why, and the same model fitted, with everything that changes named."""

from __future__ import annotations

import streamlit as st

from dgsgpt.format import duration, number, size
from dgsgpt.planner import Fitted, fit
from dgsgpt.ui import draft
from dgsgpt.ui.atoms import h, head, note, para
from dgsgpt.ui.markup import join, markup
from dgsgpt.ui.outlook import Outlook, plain_recipe
from dgsgpt.ui.problems import plain_words
from dgsgpt.ui.theme import c


def title(base_title: str, changed: bool) -> str:
    """What does not fit, e.g. `Profile Medium does not fit here`."""
    name = "This draft" if changed else base_title[:1].upper() + base_title[1:]
    return f"{name} does not fit here"


def offer(outlook: Outlook | None, base_title: str, changed: bool) -> None:
    """The card, drawn only where the draft needs more than is free; its button applies the fitted recipe."""
    if outlook is None or outlook.verdict != "over":
        return
    fitted = fit(outlook.config, outlook.free_bytes, outlook.device)
    with st.container(border=True, key="card_fitted", gap="xsmall"):
        needs = f"needs {size(outlook.plan.total_bytes)}, {size(outlook.free_bytes)} free"
        head(title(base_title, changed), note=needs)
        if fitted is None:
            para("No recipe makes this model fit, not even with a short context. Fewer layers or a smaller width will.")
        else:
            _changes(fitted)
        if plain := plain_recipe(outlook):
            note(plain)
        steps, time = number(outlook.config.train.steps), duration(outlook.h100_seconds)
        note(f"Its {steps} steps would take {time} on one H100 at 40 % of its peak: computed, not measured.")
        if fitted is not None:
            st.button(
                "Use the fitted version",
                key="use_fitted",
                icon=":material/compress:",
                on_click=draft.override,
                args=(fitted.overrides,),
            )


def _changes(fitted: Fitted) -> None:
    para(markup("The same model fitted to this machine needs {}. What changes:", size(fitted.total_bytes)))
    rows = join(markup("<li>{}</li>", plain_words(change)) for change in fitted.changes)
    style = "margin:0;padding-left:18px;font-size:13.5px;line-height:20px;color:{}"
    h(markup(f'<ul style="{style}">{{}}</ul>', c("ink2"), rows))
