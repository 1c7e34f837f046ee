"""The summary beside the form: name, figures, memory against what is free, remedies, differences, YAML."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dgsgpt.config import RunConfig
from dgsgpt.format import MINUS, MISSING, duration, gib, number, percent, plural, scientific, si, size, step_time
from dgsgpt.hardware import Hardware
from dgsgpt.pace import step_flops
from dgsgpt.planner import HARM, Remedy, remedies
from dgsgpt.ui import draft
from dgsgpt.ui.atoms import dot, field_error, h, note, tag, text
from dgsgpt.ui.command_lines import with_settings
from dgsgpt.ui.draft import Workbench
from dgsgpt.ui.fields import Form, show_problem
from dgsgpt.ui.launchpad import ANCHOR
from dgsgpt.ui.markup import Html, join, markup
from dgsgpt.ui.origin import command
from dgsgpt.ui.outlook import Outlook, RunName, diff_lines, plain_recipe, run_time, verdict_words
from dgsgpt.ui.theme import MONO, c, palette

_PARTS = (  # the planner's parts of memory, and the run colour each wears; the last is grey
    ("weights", 0), ("gradients", 5), ("optimizer", 4), ("activations", 2), ("logits", 3), ("workspace", None),
)  # fmt: skip
_SHOWN_LINES = 14


# ---------------------------------------------------------------- name
def name_field(bench: Workbench, name: RunName) -> None:
    """The run's name; empty means the suggested one."""
    key = "run_name"
    if st.session_state.get(key) != bench.name:
        st.session_state[key] = bench.name
    st.text_input("Run name", key=key, placeholder=name.name, live=True, on_change=_write_name)
    if name.problem:
        field_error(name.problem)
        st.button(f":blue[Use {name.name}]", key="fix_name", type="tertiary", on_click=_take_name, args=(name.name,))
    elif name.warning:
        field_error(name.warning, "warn")


def _write_name() -> None:
    draft.opened().name = st.session_state["run_name"].strip()


def _take_name(name: str) -> None:
    draft.opened().name = name


# ---------------------------------------------------------------- figures
def figures(outlook: Outlook | None, machine: Hardware, stale: bool = False) -> None:
    """Parameters, time, tokens, arithmetic, a step and disk; faint where the draft is no longer what they are of."""
    labels = ("Parameters", "Time", "Tokens", "Compute", "Step", "Disk")
    cells = [(label, MISSING, "shows when the settings are valid") for label in labels]
    if outlook is not None:
        cells = [(label, *cell) for label, cell in zip(labels, _figures(outlook, machine), strict=True)]
    drawn = join(
        markup(
            '<div style="min-width:0"><div style="font-size:12.5px;color:{}">{}</div>'
            '<div style="font-size:21px;font-weight:600;line-height:27px">{}</div>'
            '<div style="font-size:12.5px;line-height:16px;color:{}">{}</div></div>',
            c("ink2"), label, value, c("ink3"), aside,
        )
        for label, value, aside in cells
    )  # fmt: skip
    grid = (
        '<div id="{}" style="scroll-margin-top:10rem;display:grid;gap:10px 14px;opacity:{};'
        'grid-template-columns:repeat(auto-fit,minmax(min(200px,42%),1fr))">{}</div>'
    )
    h(markup(grid, ANCHOR, _faint(stale), drawn))
    if stale and outlook is not None:
        note("Of the settings when they were last valid.")


def _faint(stale: bool) -> str:
    return "0.4" if stale else "1"


def _figures(outlook: Outlook, machine: Hardware) -> list[tuple[str, str]]:
    """Value and aside of each."""
    cost, kept, speed = outlook.plan, outlook.checkpoints, outlook.speed
    seconds, time_note = run_time(outlook)
    a_token = f"{si(cost.flops_per_token)} a token"
    step = ("", "no speed measured yet")
    if speed is not None:
        step_s = step_flops(outlook.config) / speed.flops_per_s
        step = (step_time(step_s), f"{si(outlook.config.tokens_per_step / step_s)} tokens a second")
    return [
        (
            si(cost.params),
            "all active" if cost.active_params == cost.params else f"{si(cost.active_params)} active a token",
        ),
        (duration(seconds), time_note),
        (si(cost.total_tokens, 2), _tokens_each(cost.total_tokens / cost.active_params)),
        (f"{scientific(cost.train_flops)} FLOPs", a_token),
        (step[0] or MISSING, step[1]),
        (size(outlook.disk_bytes), f"{plural(kept, 'checkpoint')}; {size(machine.disk_free_bytes)} free"),
    ]


def _tokens_each(ratio: float) -> str:
    """Tokens per parameter, beside the 20 or so that are best for a given compute (Hoffmann et al. 2022)."""
    return f"{number(ratio, 1 if ratio < 100 else 0)} a parameter; 20 is usual"


# ---------------------------------------------------------------- memory
def memory_bar(outlook: Outlook, stale: bool = False) -> None:
    """Memory by part, stacked, against what is free now and what others use; faint where the draft is another."""
    words, role = verdict_words(outlook)
    need, free, cap = outlook.plan.total_bytes, outlook.free_bytes, max(outlook.total_bytes, outlook.plan.total_bytes)
    colors = palette()
    parts = [(n, outlook.plan.memory[n], colors.run(s) if s is not None else c("ink3")) for n, s in _PARTS]
    blocks, legend = _blocks(parts, cap), _legend(parts)
    used = outlook.total_bytes - free
    others = markup(
        '<div style="position:absolute;left:{}%;width:{}%;top:0;bottom:0;'
        'background:repeating-linear-gradient(45deg,{} 0 1px,transparent 1px 4px);opacity:.6"></div>',
        f"{free / cap * 100:.2f}", f"{used / cap * 100:.2f}", c("ink3"),
    )  # fmt: skip
    limit = markup(
        '<div style="position:absolute;left:calc({}% - 1px);width:2px;top:0;bottom:0;background:{}"></div>',
        f"{free / cap * 100:.2f}", c("ink"),
    )  # fmt: skip
    h(
        markup(
            '<div style="border-top:1px solid {};padding-top:11px;opacity:{}">'
            '<div style="display:flex;flex-wrap:wrap;align-items:center;gap:4px 8px;margin-bottom:8px">'
            '<b style="font-weight:600">Memory</b>{}'
            '<span style="margin-left:auto;font-weight:600">{} {}</span></div>'
            '<div role="img" aria-label="{}" style="position:relative;height:16px;border-radius:4px;background:{};'
            'display:flex;overflow:hidden">{}{}{}</div>'
            '<div style="display:flex;justify-content:space-between;font-size:12px;color:{};padding-top:3px">'
            "<span>at the highest moment of a step</span><span>in use by others {} of {}</span></div>"
            '<div style="display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:2px 20px;'
            'font-size:13px;line-height:19px;padding-top:6px">{}</div></div>',
            c("grid"), _faint(stale), tag(words, role), gib(need), text(f"/ {gib(free)} GiB free", "ink3"), words,
            c("idlebg"), blocks, others, limit if need > free else "", c("ink3"), size(used),
            size(outlook.total_bytes), legend,
        )
    )  # fmt: skip
    if outlook.verdict != "over" and (
        plain := plain_recipe(outlook)
    ):  # else it is said where the fitted one is offered
        note(plain)


def _blocks(parts: list[tuple[str, int, str]], cap: int) -> Html:
    return join(
        markup(
            '<div title="{} {}" style="width:{}%;background:{};border-right:1px solid {}"></div>',
            name.capitalize(), size(value), f"{value / cap * 100:.2f}", color, c("bg"),
        )
        for name, value, color in parts
    )  # fmt: skip


def _legend(parts: list[tuple[str, int, str]]) -> Html:
    return join(
        markup(
            '<div style="display:flex;align-items:center;gap:7px">{}<span style="color:{}">{}</span>'
            '<span style="margin-left:auto">{}</span></div>',
            dot(color, 8), c("ink2"), name.capitalize(), size(value),
        )
        for name, value, color in parts
    )  # fmt: skip


def remedy_list(outlook: Outlook, machine: Hardware) -> None:
    """Ways to need less memory, each with its price and a button that applies it."""
    device = "cpu" if outlook.config.train.device == "cpu" else machine.device
    over = outlook.plan.total_bytes - outlook.free_bytes
    if outlook.verdict == "fits":
        title, shown = "More room, if you want it", _harmless(outlook, device)
    else:
        found = remedies(outlook.config, outlook.free_bytes, device)[:4]
        enough = [remedy for remedy in found if remedy.saved_bytes >= over]
        title = "To have room to spare" if over <= 0 else "To make it fit" if enough else "Helps, but not enough to fit"
        shown = enough or found
    if not shown:
        return
    _rule(title, "computed, not measured")
    for i, remedy in enumerate(shown):
        _remedy(i, remedy, outlook.plan.total_bytes)


def _harmless(outlook: Outlook, device: str) -> list[Remedy]:
    """Where more than half of what is free is needed: ways to need less that change nothing of what is learned."""
    need = outlook.plan.total_bytes
    if 2 * need < outlook.free_bytes:
        return []
    found = remedies(outlook.config, need // 2, device)
    return [r for r in found if r.time_ratio is not None and not set(r.overrides) & set(HARM)][:2]


def _remedy(place: int, remedy: Remedy, total_bytes: int) -> None:
    share = remedy.saved_bytes / max(1, total_bytes)
    price = "time not computed" if remedy.time_ratio is None else _time_change(remedy.time_ratio)
    with st.container(horizontal=True, vertical_alignment="center", gap="xsmall", wrap=False):
        h(
            markup(
                '<div style="display:grid;grid-template-columns:1fr auto 84px;gap:10px;font-size:13.5px">'
                "<span>{}</span>"
                '<b style="font-weight:600;color:{};white-space:nowrap"><span style="font-size:9px">▼</span> {}</b>'
                '<span style="color:{}">{}</span></div>',
                remedy.label, c("good"), percent(share, 0), c("ink3"), price,
            )
        )  # fmt: skip
        st.button(
            ":blue[Apply]", key=f"remedy_{place}", type="tertiary", on_click=draft.override, args=(remedy.overrides,)
        )


def _time_change(ratio: float) -> str:
    if abs(ratio - 1) < 0.005:
        return "same time"
    return f"{'+' if ratio > 1 else MINUS}{percent(abs(ratio - 1), 0)} time"


# ---------------------------------------------------------------- differences and files
def differences(changed: dict[str, tuple[object, object]], base_title: str) -> None:
    """What differs from the base, line by line."""
    if not changed:
        _rule(f"No difference from {base_title}")
        return
    _rule(f"Difference from {base_title}", f"{len(changed)} setting{'s' if len(changed) > 1 else ''}")
    lines = diff_lines(changed)
    hidden = len(lines) - _SHOWN_LINES
    rows = [
        markup(
            '<div style="color:{};white-space:nowrap;overflow:hidden;text-overflow:ellipsis">'
            '<span style="display:inline-block;width:18px;color:{}">{}</span>{}</div>',
            c("ink" if sign == "+" else "ink3"), c("accent" if sign == "+" else "ink3"), sign, line,
        )
        for sign, line in lines[:_SHOWN_LINES]
    ]  # fmt: skip
    if hidden > 0:
        rows.append(text(f"… {hidden} more lines; all are in the YAML", "ink3"))
    h(
        markup(
            '<div style="font-family:{};font-size:12.5px;line-height:19px;background:{};border-radius:6px;'
            'padding:8px 12px">{}</div>',
            Html(MONO.replace('"', "'")), c("sunk"), join(rows),
        )
    )  # fmt: skip


def files(config: RunConfig, name: str, bench: Workbench, root: Path) -> None:
    """The resulting YAML, to look at and to take along, and the commands that do the same."""
    yaml = config.to_yaml()
    with st.expander("Resulting YAML"):
        st.code(yaml, language="yaml", height=320)
    st.download_button(
        f"Download {name}.yaml",
        yaml,
        f"{name}.yaml",
        "application/yaml",
        key="download_yaml",
        on_click="ignore",
        icon=":material/download:",
        width="stretch",
    )
    _rule("The same from the command line", "" if bench.origin else "with the file, or without")
    st.code(command(bench.origin, config, name), language="bash", wrap_lines=True)
    exact = with_settings(bench, config, name, root) if bench.origin is None else ""
    if exact:
        st.code(exact, language="bash", wrap_lines=True)


def _rule(title: str, aside: str = "") -> None:
    h(
        markup(
            '<div style="border-top:1px solid {};padding-top:10px;display:flex;justify-content:space-between;'
            'font-size:13px;color:{}"><span>{}</span>{}</div>',
            c("grid"), c("ink2"), title, text(aside, "ink3"),
        )
    )  # fmt: skip


def remaining_problems(f: Form) -> None:
    """Problems that no field on the page shows, so that none is hidden."""
    hidden = [p for path, p in f.problems.items() if path not in f.shown]
    if hidden:
        note("To be mended", role="bad")
    for problem in hidden:
        show_problem(problem, "summary_")
