"""How a run begins on the Configure page: where the draft starts from, and the bar that starts it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from dgsgpt.config import DataConfig, RunConfig
from dgsgpt.data.dataset import list_datasets
from dgsgpt.data.prepare import list_uploads, resolve
from dgsgpt.dry_run import STEPS
from dgsgpt.errors import DgsgptError
from dgsgpt.format import duration, gib_of, si, size
from dgsgpt.goals import GOALS
from dgsgpt.hardware import Hardware
from dgsgpt.launch import start_run
from dgsgpt.run_queue import enqueue
from dgsgpt.runs import Run
from dgsgpt.ui import draft, form, kept_drafts, origin, problems, state
from dgsgpt.ui.app import page_file
from dgsgpt.ui.atoms import error_card, h, tag, text
from dgsgpt.ui.fields import Form, seed
from dgsgpt.ui.markup import Html, markup
from dgsgpt.ui.outlook import Outlook, RunName, verdict_words
from dgsgpt.ui.theme import c

_PROFILE, _YAML = "profile", "yaml"
ANCHOR = "run-summary"  # where a link leads that shows where the summary is not beside the form


# ---------------------------------------------------------------- where a draft starts from
def start_from(runs: list[Run]) -> None:
    """Profile defaults, a run to clone, or YAML."""
    bench = draft.opened()
    options = [_PROFILE, *(run.id for run in runs), _YAML]
    if bench.source not in options:
        options.insert(1, bench.source)  # a run that has been removed since
    names = {_PROFILE: "Profile defaults", _YAML: "Paste or import YAML"}
    key = seed("source", bench.source, "start")
    st.selectbox(
        "Start from",
        options,
        format_func=lambda o: names.get(o) or _source_name(o),
        key=key,
        label_visibility="collapsed",
        width=190,
        on_change=_start_from,
        args=(key, {run.id: run for run in runs}),
    )


def _source_name(source: str) -> str:
    if source.startswith("goal:"):
        return next((f"Goal: {goal.title}" for goal in GOALS if source == f"goal:{goal.name}"), source)
    return f"From {source[5:]}" if source.startswith("from:") else f"Clone {source}"


def _start_from(key: str, runs: dict[str, Run]) -> None:
    bench, chosen = draft.opened(), st.session_state[key]
    if chosen == _PROFILE:
        draft.use_profile(bench.profile)
    elif chosen in runs:
        state.attempt(draft.clone_run, runs[chosen])
    elif chosen == _YAML:
        bench.source = _YAML


def undo_and_redo() -> None:
    """Back and forth through the changes of the draft."""
    bench = draft.opened()
    st.button(
        "Undo", icon=":material/undo:", key="undo", help="Undo the last change", disabled=not bench.undo,
        on_click=bench.step_back,
    )  # fmt: skip
    if bench.redo:
        says = "Make the change again that was undone"
        st.button("Redo", icon=":material/redo:", key="redo", help=says, on_click=bench.step_forward)


def import_panel() -> None:
    """Where YAML is pasted or a file is dropped; a text with a mistake changes nothing."""
    with st.container(border=True, key="card_import"):
        st.text_area(
            "YAML", key="import_text", height=140, placeholder="model:\n  n_layer: 6", label_visibility="collapsed"
        )
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            file = st.file_uploader("A YAML file", type=["yaml", "yml"], key="import_file", max_upload_size=1)
            st.button("Take over", key="import_go", type="primary", on_click=_import, args=(file,))


def _import(file: Any) -> None:
    pasted = str(st.session_state.get("import_text") or "")
    if file is None and not pasted.strip():
        state.flash_error("Nothing to import: paste YAML or choose a file first.")
        return
    try:
        content = file.getvalue().decode("utf-8-sig") if file is not None else pasted
    except UnicodeDecodeError as e:
        state.flash_error(f"{file.name}: not UTF-8 text (byte {e.start}); is it a config file?")
        return
    state.attempt(draft.import_yaml, content, file.name if file is not None else "pasted YAML")


# ---------------------------------------------------------------- the text
def known_corpora(embedded: list[str]) -> list[str]:
    """What the Data field offers: embedded corpora, uploads, and texts that were prepared before."""
    texts = [str(path) for path in list_uploads()]
    prepared = [d.corpus for d in list_datasets()]
    return list(dict.fromkeys([*embedded, *texts, *prepared]))


@st.cache_data(max_entries=64, show_spinner="Reading the text")
def _resolved(config: RunConfig, stamp: tuple[int, int] | None) -> tuple[RunConfig | None, str]:
    try:
        return resolve(config), ""
    except DgsgptError as e:
        return None, str(e)


def resolve_draft(config: RunConfig) -> tuple[RunConfig | None, str]:
    """The config with what only the text can tell, or why the text cannot serve; read again when the file changes."""
    path = Path(config.data.corpus)
    try:
        stat = path.stat()
        stamp: tuple[int, int] | None = (stat.st_mtime_ns, stat.st_size)
    except (OSError, ValueError):  # an embedded corpus, or a path that the reader will refuse with a reason
        stamp = None
    return _resolved(config, stamp)


def prepared_tokens(data: DataConfig) -> int | None:
    """Training tokens of the text as this config cuts it, if it has been prepared before."""
    for dataset in list_datasets():
        same_size = (
            data.tokenizer.kind != "bpe" or dataset.meta.get("requested_vocab_size") == data.tokenizer.vocab_size
        )
        if (
            data.corpus in (dataset.corpus, dataset.id)
            and dataset.tokenizer_kind == data.tokenizer.kind
            and dataset.meta["val_fraction"] == data.val_fraction
            and dataset.document_separator == data.document_separator
            and same_size
        ):
            return dataset.train_tokens
    return None


def machine_problems(config: RunConfig, machine: Hardware) -> dict[str, problems.Problem]:
    """Settings that are valid, but not on this machine."""
    if config.train.device == "cuda" and not machine.gpus:
        path = "train.device"
        fix = problems.Fix("Use auto", {path: "auto"})
        return {path: problems.Problem(path, "Device cuda needs a GPU, and none was found; choose auto or cpu", (fix,))}
    return {}


# ---------------------------------------------------------------- the bar at the bottom
def blocked_by(f: Form, name: RunName, outlook: Outlook | None) -> str:
    """Why the run cannot be started, in one sentence; empty when it can."""
    if f.problems:
        names = ", ".join(form.label_of(path) for path in f.problems)
        return f"{names} {'needs' if len(f.problems) == 1 else 'need'} mending first"
    if name.problem:
        return "The run name needs mending first"
    if outlook is None:
        return "The settings are not valid"
    if outlook.impossible:
        return f"Needs {size(outlook.plan.total_bytes)} of memory, this machine has {size(outlook.total_bytes)}"
    return ""


def bottom_bar(
    f: Form, name: RunName, outlook: Outlook | None, config: RunConfig | None, try_it: Callable[[], None] | None
) -> None:
    """Verdict, queue, dry run and Start, in sight at every width; `try_it` begins a dry run where one may begin."""
    blocked = blocked_by(f, name, outlook)
    with st.bottom, st.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
        h(_standing(f, name, outlook, blocked), width="stretch")
        closed = bool(blocked) or config is None
        says = "Starts when the runs before it have ended, also when this page is closed."
        queued = st.button("Add to queue", key="enqueue", disabled=closed, help=blocked or says)
        why = blocked or _no_dry_run(outlook, try_it is None)
        says = f"Makes {STEPS} real steps and says what was predicted and what measured; no run is left behind."
        st.button(
            f"Dry run, {STEPS} steps", key="dry_run", disabled=closed or bool(why), help=why or says, on_click=try_it
        )
        pressed = st.button(
            "Start training",
            key="start",
            type="primary",
            icon=":material/play_arrow:",
            disabled=closed,
            help=blocked or None,
        )
    if config is not None and (pressed or queued):
        _begin(config, name.name, start_run if pressed else enqueue)


def _no_dry_run(outlook: Outlook | None, at_work: bool) -> str:
    """Why a dry run cannot be begun now; empty when it can."""
    if at_work:
        return "A dry run is at work"
    if outlook is not None and outlook.verdict == "over" and outlook.device == "cpu":
        return "Needs more memory than is free: the system would end it, or other programs"
    return ""


def _standing(f: Form, name: RunName, outlook: Outlook | None, blocked: str) -> Html:
    """Name, verdict and figures, or what stands in the way."""
    if f.problems or outlook is None:
        verdict, figures = tag(f"✕ {blocked}", "bad"), text("")
    elif blocked:
        verdict, figures = tag(*verdict_words(outlook)), text(blocked, "bad")
    else:
        verdict = tag(*verdict_words(outlook))
        memory, disk = gib_of(outlook.plan.total_bytes, outlook.free_bytes), f"{size(outlook.disk_bytes)} disk"
        time = [duration(outlook.seconds)] if outlook.seconds else []
        figures = text(" · ".join([memory, f"{si(outlook.plan.params)} params", *time, disk]), "ink2")
    return markup(
        '<div style="display:flex;flex-wrap:wrap;align-items:center;gap:2px 18px">'
        '<b style="font-weight:600">{}</b>{}{}<a class="to-summary" href="#{}" style="color:{}">Summary</a></div>',
        name.name, verdict, figures, ANCHOR, c("accent"),
    )  # fmt: skip


def _begin(config: RunConfig, name: str, begin: Callable[[Run], object]) -> None:
    """Create the run, start it as a process of its own or put it into the queue, and go to watch it."""
    bench = draft.opened()
    try:
        run = origin.create(bench.origin, config, name)
        begin(run)
    except DgsgptError as e:
        state.flash_error(str(e))
        st.rerun()
    bench.name = ""
    kept_drafts.forget(bench)
    st.switch_page(page_file("train"), query_params={"run": run.id})


def flash() -> None:
    """The error of the last action, once."""
    message = state.take_flash()
    if message:
        error_card(message, "Nothing was changed.")
