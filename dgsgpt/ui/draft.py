"""The draft that the Configure page edits, kept for the browser session.

It is one plain value in the session state, so it survives the change of page; widgets only show it and
write back into it. A draft of no one's making begins as the profile that suits this machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import streamlit as st

from dgsgpt.config import RunConfig, parse_config
from dgsgpt.profiles import load_profile
from dgsgpt.runs import Run
from dgsgpt.ui import form
from dgsgpt.ui.form import Draft

if TYPE_CHECKING:
    from dgsgpt.goals import Suggestion
    from dgsgpt.ui.origin import Origin

KEY = "configure"
_UNDO_STEPS = 100
Snapshot: TypeAlias = "tuple[Draft, Draft, str, str, str, Origin | None]"


@dataclass
class Workbench:
    """A draft, the base it is compared with, and what it takes to go back.

    `base_title` names the base for people; `profile` is the profile last chosen; `source` is what "Start from" shows;
    `name` is the run name the person typed, empty for the suggested one; `parked` holds the settings of what is off;
    `origin` is the checkpoint whose weights the run begins with, None for one from scratch;
    `valid` is the last config the draft was valid as, for pictures that should not vanish while it is mended;
    `id` names the file it is kept in, so that a reload of the page brings it back.
    """

    draft: Draft
    base: Draft
    base_title: str
    profile: str
    source: str = "profile"
    name: str = ""
    origin: Origin | None = None
    valid: RunConfig | None = None
    undo: list[Snapshot] = field(default_factory=list)
    redo: list[Snapshot] = field(default_factory=list)
    parked: dict[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=lambda: secrets.token_hex(6))

    def change(self, draft: Draft) -> None:
        """Replace the draft; undo brings the old one back."""
        if draft != self.draft:
            self._remember()
            self.draft = draft

    def begin(
        self,
        values: Draft,
        base_title: str,
        profile: str,
        source: str,
        changed: Mapping[str, Any] | None = None,
        origin: Origin | None = None,
    ) -> None:
        """Start anew from a base, with some of its settings changed."""
        self._remember()
        self.base, self.base_title, self.profile, self.source = values, base_title, profile, source
        self.origin = origin
        self.draft = form.apply(values, changed or {})

    def step_back(self) -> None:
        """Undo the last change, if there is one."""
        if self.undo:
            self.redo = [*self.redo, self._snapshot()]
            self._go_to(self.undo.pop())

    def step_forward(self) -> None:
        """Make the change again that was undone last, if there is one."""
        if self.redo:
            self.undo = [*self.undo, self._snapshot()]
            self._go_to(self.redo.pop())

    def _snapshot(self) -> Snapshot:
        return self.draft, self.base, self.base_title, self.profile, self.source, self.origin

    def _go_to(self, then: Snapshot) -> None:
        self.draft, self.base, self.base_title, self.profile, self.source, self.origin = then

    def _remember(self) -> None:
        self.undo, self.redo = [*self.undo, self._snapshot()][-_UNDO_STEPS:], []


def workbench(automatic: str) -> Workbench:
    """The session's workbench; on the first visit it holds the profile `automatic`."""
    if KEY not in st.session_state:
        profile = load_profile(automatic)
        values = form.draft_of(profile.config)
        st.session_state[KEY] = Workbench(values, values, f"profile {profile.title}", automatic)
    return st.session_state[KEY]


def opened() -> Workbench:
    """The workbench inside a callback, when the page has made it."""
    return st.session_state[KEY]


# ---------------------------------------------------------------- what widgets call
def override(overrides: Mapping[str, Any]) -> None:
    """Apply dotted overrides."""
    bench = opened()
    bench.change(form.apply(bench.draft, overrides))


def switch(section: str, on: bool) -> None:
    """Turn an optional section on or off; off keeps its settings for the next time."""
    bench = opened()
    if not on and (values := form.get(bench.draft, section)) is not None:
        bench.parked[section] = values
    bench.change(form.toggle(bench.draft, section, on, bench.parked.get(section)))


def put_back(path: str) -> None:
    """Reset one setting to the base; in a section that the base has off, to what the section begins with."""
    bench = opened()
    if form.is_shown(bench.base, path):
        bench.change(form.reset(bench.draft, bench.base, path))
    else:
        bench.change(form.apply(bench.draft, {path: form.origin(bench.draft, bench.base, path)}))


def put_all_back() -> None:
    """Reset every setting to the base."""
    bench = opened()
    bench.change(bench.base)


def use_profile(name: str) -> None:
    """Begin with a profile; the chosen data stay."""
    bench, profile = opened(), load_profile(name)
    values = form.draft_of(profile.config)
    bench.begin(values, f"profile {profile.title}", name, "profile", _chosen_data(bench, values))


def use_goal(suggestion: Suggestion) -> None:
    """Begin with a goal's config; the chosen data stay."""
    bench, goal = opened(), suggestion.goal
    values = form.draft_of(suggestion.config)
    bench.begin(values, f"goal {goal.title}", bench.profile, f"goal:{goal.name}", _chosen_data(bench, values))


def _chosen_data(bench: Workbench, values: Draft) -> dict[str, Any]:
    """What the person chose of the data, where it is not that of `values` anyway."""
    kept = {p: form.get(bench.draft, p) for p in form.SETTINGS if p.startswith("data.")}
    return {p: v for p, v in kept.items() if v != form.get(values, p) and v != form.get(bench.base, p)}


def clone_run(run: Run) -> None:
    """Begin with the config of a run.

    Raises:
        ConfigError: the run's config cannot be read.
    """
    bench = opened()
    bench.begin(form.draft_of(run.config), f"run {run.id}", bench.profile, run.id)


def import_yaml(text: str, source: str) -> RunConfig:
    """Take over a config from YAML text; compared with the base as before.

    Raises:
        ConfigError: the text is no valid config; the draft stays as it was.
    """
    config = parse_config(text, source)
    opened().change(form.draft_of(config))
    return config
