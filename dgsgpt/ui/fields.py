"""Widgets made from the schema: each shows the draft and writes back into it.

A widget's state is set from the draft before it is drawn, so the draft is the only truth: undo, reset,
a profile or a fix elsewhere show at once, and nothing is lost when the page is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

from dgsgpt.format import lr, number
from dgsgpt.rules import Setting
from dgsgpt.ui import draft, form, idle
from dgsgpt.ui.atoms import field_error, note
from dgsgpt.ui.problems import Problem
from dgsgpt.ui.ranges import bounds, facts, from_one_line, log_rungs, one_line, step
from dgsgpt.ui.ranges import with_value as with_value

DOT = "●"
NULL = "null"
_NO_AMOUNT = frozenset({"train.seed"})  # numbers of which twice as much means nothing


@dataclass
class Form:
    """The draft being drawn, its problems, and what differs from the base.

    `changes` counts a switched section once; `shown` are the problems that already stand beside a field, `drawn` the
    settings that have one, `ways_back` those with an arrow; `beside` is whether a changed field has its way back in
    the corner, not below.
    """

    values: form.Draft
    base: form.Draft
    problems: dict[str, Problem]
    changed: frozenset[str]
    changes: int
    shown: set[str] = field(default_factory=set)
    drawn: set[str] = field(default_factory=set)
    ways_back: set[str] = field(default_factory=set)
    beside: bool = True

    def label(self, path: str, text: str = "") -> str:
        """A field's name, with a dot when it differs from the base, or from what a section begins with."""
        self.drawn.add(path)
        name = text or form.label_of(path)
        return f"{name} {DOT}" if self._resettable(path) else name

    def idle(self, path: str) -> bool:
        """Whether a field cannot be set because it changes nothing now; one that is to be mended always can be."""
        return path not in self.problems and bool(idle.why_idle(self.values, path))

    @contextmanager
    def framed(self, path: str) -> Iterator[None]:
        """The box of a field; where that differs from the base, a small arrow in its corner leads back."""
        again = path in self.ways_back  # a setting may have two fields, a key only one
        self.ways_back.add(path)
        with st.container(key=None if again else f"field_{path.replace('.', '-')}", gap="xsmall"):
            yield
            if self.beside and not again and self._resettable(path):
                says = self._back_to(path)
                st.button("↺", key=f"back_{path}", type="tertiary", help=says, on_click=draft.put_back, args=(path,))

    # ------------------------------------------------------------ single fields
    def number(self, path: str, label: str = "", empty: str = NULL, slider: bool = False) -> None:
        """A number with the schema's bounds; `empty` is the name that null goes by, `slider` adds one if it is wide."""
        with self.framed(path):
            setting = form.SETTINGS[path]
            value = form.get(self.values, path)
            key = seed(path, value if value is None else setting.type(value))
            low, high = bounds(setting)
            st.number_input(
                self.label(path, label),
                min_value=low,
                max_value=high,
                value=None if setting.optional else "min",
                step=step(setting, value),
                format="%d" if setting.type is int else "%g",
                key=key,
                help=setting.help,
                placeholder=empty if setting.optional else None,
                disabled=self.idle(path),
                on_change=_write_number,
                args=(path, key, setting.optional),
            )
            if slider:
                self._slider(setting)
            self.problem(path)

    def ladder(self, path: str, rungs: Sequence[Any], label: str = "", show: Callable[[Any], str] = str) -> None:
        """A slider over sensible values; the draft's own value is always among them."""
        with self.framed(path):
            options = with_value(rungs, form.get(self.values, path))
            key = seed(path, form.get(self.values, path), "ladder")
            widget: Any = st.select_slider if len(options) > 1 else st.selectbox
            widget(
                self.label(path, label),
                options,
                format_func=show,
                key=key,
                help=form.SETTINGS[path].help,
                disabled=self.idle(path),
                on_change=_write,
                args=(path, key),
            )
            self.problem(path)

    def choice(
        self,
        path: str,
        options: Sequence[Any],
        label: str = "",
        show: Callable[[Any], str] = form.name_of,
        typed: Callable[[str], Any] | None = None,
    ) -> None:
        """A list to choose from, the draft's own value always among them; `typed` reads what is typed instead."""
        with self.framed(path):
            value = form.get(self.values, path)
            key = seed(path, NULL if value is None else value, "choice")
            st.selectbox(
                self.label(path, label),
                # A selectbox takes None for "nothing chosen", so null goes by a name.
                [NULL if o is None else o for o in (options if value in options else [*options, value])],
                format_func=lambda o: show(None if o == NULL else o),
                key=key,
                help=form.SETTINGS[path].help,
                disabled=self.idle(path),
                accept_new_options=typed is not None,
                on_change=_write_choice,
                args=(path, key, typed),
            )
            self.problem(path)

    def segments(self, path: str, label: str = "") -> None:
        """The few choices of a setting side by side."""
        with self.framed(path):
            value = form.get(self.values, path)
            choices = form.SETTINGS[path].choices
            key = seed(path, value, "seg")
            st.segmented_control(
                self.label(path, label),
                choices if value in choices else (*choices, value),
                format_func=form.name_of,
                required=True,
                key=key,
                help=form.SETTINGS[path].help,
                disabled=self.idle(path),
                on_change=_write,
                args=(path, key),
            )
            self.problem(path)

    def text(self, path: str, label: str = "", empty: str = NULL) -> None:
        """A line of text; where null is allowed an empty line is that (`empty` by name), and \\n is a line break."""
        with self.framed(path):
            setting, value = form.SETTINGS[path], form.get(self.values, path) or ""
            key = seed(path, one_line(value) if setting.optional else value)
            st.text_input(
                self.label(path, label),
                key=key,
                help=setting.help,
                placeholder=empty if setting.optional else None,
                disabled=self.idle(path),
                on_change=_write_optional_text if setting.optional else _write,
                args=(path, key),
            )
            self.problem(path)

    def switch(self, path: str, label: str = "") -> None:
        """A toggle: of an optional section, or of a true-or-false setting."""
        with self.framed(path):
            setting, value = form.SETTINGS[path], form.get(self.values, path)
            key = seed(path, value is not None if setting.section else bool(value))
            write = _write_section if setting.section else _write
            st.toggle(
                self.label(path, label),
                key=key,
                help=setting.help,
                disabled=self.idle(path),
                on_change=write,
                args=(path, key),
            )
            self.problem(path)

    def problem(self, path: str) -> None:
        """Below its field: why it cannot be set, or the setting's problem with its fixes as buttons."""
        if self.idle(path):
            note(idle.why_idle(self.values, path))
        problem = self.problems.get(path)
        if problem is None or path in self.shown:
            return
        self.shown.add(path)
        show_problem(problem)

    # ------------------------------------------------------------ from the schema alone
    def setting(self, setting: Setting) -> None:
        """Any setting of the schema: the widget its type asks for, then bounds, unit and a way back."""
        path = setting.path
        if setting.section or setting.type is bool:
            self.switch(path)
        elif setting.choices:
            self.choice(path, setting.choices)
        elif setting.type in (int, float):
            self.number(path, slider=True)
        else:
            self.text(path)
        note(f"{path} · {facts(setting)}" if facts(setting) else path)
        self._way_back(path)

    def _slider(self, setting: Setting) -> None:
        """Under a number of a wide range: a slider over its logarithm; the field above takes every value."""
        path, rungs = setting.path, log_rungs(setting)
        if not rungs or path in _NO_AMOUNT:
            return
        key = seed(path, form.get(self.values, path), "log")
        st.select_slider(
            form.label_of(path),
            with_value(rungs, form.get(self.values, path)),
            format_func=number if setting.type is int else lr,
            key=key,
            label_visibility="collapsed",
            disabled=self.idle(path),
            on_change=_write,
            args=(path, key),
        )

    # ------------------------------------------------------------ the way back
    def _resettable(self, path: str) -> bool:
        now, was = form.get(self.values, path), form.origin(self.values, self.base, path)
        return form.differs_within(self.changed, path) and was != now

    def _back_to(self, path: str) -> str:
        """What resetting a setting does, e.g. `Reset to 4`."""
        setting, now = form.SETTINGS[path], form.get(self.values, path)
        was = form.origin(self.values, self.base, path)
        if setting.section and was is not None and now is not None:
            return "Reset all in it"
        if setting.section or setting.type is bool:
            return "Reset to off" if was is None or was is False else "Reset to on"
        return f"Reset to {NULL if was is None else f'{was:g}' if isinstance(was, float) else form.name_of(was)}"

    def _way_back(self, path: str) -> None:
        """A button that resets a setting, when there is something to reset."""
        if self._resettable(path):
            said = f":blue[{self._back_to(path)}]"
            st.button(said, key=f"reset_{path}", type="tertiary", on_click=draft.put_back, args=(path,))


def show_problem(problem: Problem, where: str = "") -> None:
    """A problem in one red line, its fixes as buttons."""
    with st.container(gap="xxsmall"):
        field_error(problem.message)
        if problem.fixes:
            _fix_buttons(problem, where)


def _fix_buttons(problem: Problem, where: str) -> None:
    with st.container(horizontal=True, gap="small"):
        for i, fix in enumerate(problem.fixes):
            st.button(
                f":blue[{fix.label}]",
                key=f"fix_{where}{problem.path}_{i}",
                type="tertiary",
                on_click=draft.override,
                args=(fix.overrides,),
            )


# ---------------------------------------------------------------- between widget and draft
def seed(path: str, value: Any, kind: str = "set") -> str:
    """Put the draft's value into a widget's state; returns the widget's key."""
    key = f"{kind}_{path.replace('.', '-')}"
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value
    return key


def _write(path: str, key: str) -> None:
    draft.override({path: st.session_state[key]})


def _write_optional_text(path: str, key: str) -> None:
    draft.override({path: from_one_line(st.session_state[key]) or None})


def _write_choice(path: str, key: str, typed: Callable[[str], Any] | None) -> None:
    value = st.session_state[key]
    draft.override({path: None if value == NULL else typed(value) if typed else value})


def _write_number(path: str, key: str, optional: bool) -> None:
    value = st.session_state[key]
    if value is not None or optional:  # an emptied field keeps the value it had
        draft.override({path: value})


def _write_section(path: str, key: str) -> None:
    draft.switch(path, st.session_state[key])
