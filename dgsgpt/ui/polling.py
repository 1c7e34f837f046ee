"""Redraw only what changed: a page asks now and then whether anything is new, and does nothing while it is not.

A fragment with `run_every` has to draw each time: what it leaves out is removed from the page. So the asking is done
by a component that shows nothing. Each of its ticks compares stamps on the server, in a callback, the one place from
which streamlit reruns fragments by their key; with nothing new, only the component's own fragment runs, in a few
milliseconds. A browser tab that nobody looks at does not ask. Before what is polled for is drawn:

    polling.poll({"train_plots": lambda: state.stamp(run), polling.PAGE: lambda: run.status().state}, every=2.0)

    @st.fragment(key="train_plots")
    def plots() -> None: ...

    plots()

What changes with the clock alone (a time left, the machine's load) still wants a small fragment with `run_every`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st
from streamlit.errors import StreamlitAPIException

Stamps = Mapping[str, Callable[[], object]]
PAGE = ""  # the whole page, where a fragment's key would stand
KEY, BOX, TICKS, SEEN = "poll", "poll_box", "poll_ticks", "poll_seen"

_JS = """
export default function ({ parentElement, data, setTriggerValue }) {
  const box = parentElement.querySelector(".poll");
  box.ask = () => { if (!document.hidden) setTriggerValue("tick", Date.now()); };
  if (box.every !== data.every) {
    clearInterval(box.timer);
    box.every = data.every;
    box.timer = setInterval(() => box.ask(), data.every * 1000);
    box.looked ??= () => box.ask();
    document.addEventListener("visibilitychange", box.looked);  // at once when the tab is looked at again
  }
  return () => {
    clearInterval(box.timer);
    document.removeEventListener("visibilitychange", box.looked);
    box.every = null;
  };
}
"""


def poll(stamps: Stamps, every: float | None) -> None:
    """Draw the fragment of a key anew when its stamp is another value, asking each `every` seconds; never with None.

    A stamp is a function that returns quickly, such as `state.stamp` of a run; its value is compared with what it was
    before the page, or that fragment by a tick, was last drawn. `PAGE` as a key stands for the whole page. Call it
    once, at the beginning of a page's body: what comes in while the page draws itself is then not missed.
    """
    if every is None:
        return
    changed(st.session_state.setdefault(SEEN, {}), stamps)

    @st.fragment(key=KEY)
    def ask() -> None:
        component = st.components.v2.component(
            "dgsgpt_poll", html='<div class="poll"></div>\n', js=_JS, isolate_styles=False
        )
        component(key=TICKS, data={"every": every}, on_tick_change=lambda: redraw(stamps))

    with st.container(key=BOX):  # takes no room, see `theme.page_css`
        ask()


def redraw(stamps: Stamps) -> None:
    """What a tick does: rerun what has changed since it was drawn last, if anything; for callbacks only."""
    fresh = changed(st.session_state.setdefault(SEEN, {}), stamps)
    if PAGE in fresh:
        st.rerun()
    if fresh:
        try:
            st.rerun(fresh)
        except StreamlitAPIException:  # the page never came to where it draws that fragment
            st.rerun()


def changed(seen: dict[str, object], stamps: Stamps) -> list[str]:
    """The keys whose stamp is another than in `seen`, which then holds the new ones and no others."""
    now = {name: stamp() for name, stamp in stamps.items()}
    fresh = [name for name, value in now.items() if name not in seen or seen[name] != value]
    seen.clear()
    seen.update(now)
    return fresh
