"""More that can be done with the run: fork, clone, compare, and take its curves along."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from dgsgpt import format as fmt
from dgsgpt.checkpoint import list_checkpoints
from dgsgpt.metrics_csv import to_csv
from dgsgpt.report import build_report
from dgsgpt.runs import Run
from dgsgpt.ui import atoms, train_moment
from dgsgpt.ui.app import page_file
from dgsgpt.ui.run_cards import step_of

PICTURE = "train_picture"
MAX_COMPARED = 4


def menu(run: Run, others: Sequence[Run]) -> None:
    """The menu; what opens another page does so at once."""
    with st.popover("More", key="train_more", width="content"), st.container(gap="xxsmall", width=270):
        whole = [info for info in list_checkpoints(run) if info.complete]
        newest = f"{run.id}@{step_of(whole[0].path)}" if whole else ""
        said = f"Goes on from step {fmt.number(step_of(whole[0].path))}." if whole else "Nothing is saved yet."
        if _item("Fork from its newest checkpoint", "call_split", "fork", disabled=not whole, said=said):
            st.switch_page(page_file("configure"), query_params={"base": newest, "how": "fork"})
        if _item("New run with its settings", "content_copy", "clone"):
            st.switch_page(page_file("configure"), query_params={"clone": run.id})
        refs = [newest, *_newest_of(others)][:MAX_COMPARED]
        both = len(refs) > 1 and bool(newest)
        said = "The newest checkpoint of each run shown." if both else "Lay another run with a checkpoint over it."
        if _item("Compare with the runs laid over", "compare", "compare", disabled=not both, said=said):
            st.switch_page(page_file("checkpoints"), query_params={"checkpoint": refs})
        key = f"train_at_{run.id}"
        st.number_input(
            "Look at a step", 0, max(1, run.status().max_steps), None, key=key,
            placeholder="as by a click on the curve",
            help="Figures, nearest sample and checkpoint of that step; empty shows none.",
            on_change=_look, args=(run.id, key),
        )  # fmt: skip
        if _item("Picture of the chart (PNG)", "image", "png"):
            st.session_state[PICTURE] = st.session_state.get(PICTURE, 0) + 1
        runs = [run, *others]
        name = run.id if len(runs) == 1 else f"{run.id}-and-{len(runs) - 1}-more"
        st.download_button(
            f"Raw data of {fmt.plural(len(runs), 'run')} (CSV)", lambda: to_csv(runs), f"{name}.csv", "text/csv",
            key="train_csv", icon=":material/download:", on_click="ignore", type="tertiary",
            help="Every logged step, nothing smoothed or left out; written when you press.",
        )  # fmt: skip
        st.download_button(
            "Report (one HTML file)", lambda: build_report(runs), f"{name}.html", "text/html", key="train_report",
            icon=":material/description:", on_click="ignore", type="tertiary",
            help="Config, curves, samples and environment; opens without a network.",
        )  # fmt: skip
        atoms.note("The same on the command line:")
        st.code("\n".join(commands(run, others, newest)), language="bash", wrap_lines=True)


def _look(run_id: str, key: str) -> None:
    """Show the step that was typed, which a keyboard reaches and a click on the curve does not."""
    step = st.session_state[key]
    if step is None:
        train_moment.close()
    else:
        train_moment.choose(run_id, int(step))


def _item(label: str, icon: str, key: str, *, disabled: bool = False, said: str | None = None) -> bool:
    return st.button(
        label, icon=f":material/{icon}:", key=f"train_more_{key}", type="tertiary", disabled=disabled, help=said
    )


def _newest_of(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs:
        whole = next((info for info in list_checkpoints(run) if info.complete), None)
        if whole is not None:
            found.append(f"{run.id}@{step_of(whole.path)}")
    return found


def commands(run: Run, others: Sequence[Run], newest: str) -> list[str]:
    """What the menu does, for a shell."""
    fork = [f"dgsgpt fork {newest}"] if newest else []
    names = " ".join(one.id for one in (run, *others))
    return [*fork, f"dgsgpt metrics {names} --csv {run.id}.csv", f"dgsgpt report {names}"]


def picture() -> int:
    """How many pictures of the chart were asked for."""
    return int(st.session_state.get(PICTURE, 0))
