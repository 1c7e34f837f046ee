"""A page that asks whether there is anything new, and what the collector of cycles is spared."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt.metrics import MetricsWriter
from dgsgpt.ui import garbage, polling, state
from tests.run_factory import make_run, write_status


def test_only_what_has_another_stamp_is_drawn_anew() -> None:
    values: dict[str, Any] = {"a": 1, "b": (1, 2)}
    stamps = {name: lambda name=name: values[name] for name in values}
    seen: dict[str, object] = {"gone": 5}
    assert polling.changed(seen, stamps) == ["a", "b"]
    assert polling.changed(seen, stamps) == []
    values["b"] = (1, 3)
    assert polling.changed(seen, stamps) == ["b"]
    assert seen == values


@pytest.mark.parametrize(("fresh", "asked"), [([], None), (["a"], ["a"]), (["a", polling.PAGE], "app")])
def test_a_tick_reruns_what_is_fresh(monkeypatch: pytest.MonkeyPatch, fresh: list[str], asked: object) -> None:
    class Rerun(BaseException):
        pass

    def rerun(scope: object = "app") -> None:
        raise Rerun(scope)

    monkeypatch.setattr(polling.st, "session_state", {})
    monkeypatch.setattr(polling.st, "rerun", rerun)
    monkeypatch.setattr(polling, "changed", lambda seen, stamps: fresh)
    if asked is None:
        polling.redraw({})
        return
    with pytest.raises(Rerun) as raised:
        polling.redraw({})
    assert raised.value.args == (asked,)


def _page(every: float | None) -> None:
    import streamlit as st

    from dgsgpt.ui import polling

    polling.poll({"parts": lambda: len(st.session_state)}, every)

    @st.fragment(key="parts")
    def parts() -> None:
        st.text("drawn")

    parts()


@pytest.mark.parametrize("every", [2.0, None])
def test_a_page_that_polls_shows_what_it_would_without(every: float | None) -> None:
    app = AppTest.from_function(_page, args=(every,), default_timeout=30).run()
    assert not app.exception
    assert [text.value for text in app.text] == ["drawn"]
    assert (polling.SEEN in app.session_state) is (every is not None)


def test_a_run_has_another_stamp_when_there_is_something_new_to_draw(runs_dir: Path) -> None:
    run = make_run(runs_dir, "a", "running", 50)
    seen = [state.stamp(run)]

    def changed() -> bool:
        seen.append(state.stamp(run))
        return seen[-1] != seen[-2]

    assert not changed()
    write_status(run, "running", 55)
    assert not changed(), "a heartbeat is nothing to draw"
    MetricsWriter(run.path).log(60, {"loss/train": 1.0})
    assert changed()
    MetricsWriter(run.path).event("sample", 60, text="x")
    assert changed()
    (run.path / "PAUSE").touch()
    assert changed()
    write_status(run, "finished", 60)
    assert changed()
    assert not changed()


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("collector")
def test_modules_are_set_aside_once_and_again_when_there_are_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "_modules", 0)
    gc.unfreeze()
    assert garbage.settle()
    assert gc.get_freeze_count() > 1000
    assert not garbage.settle()
    monkeypatch.setitem(sys.modules, "one_more", ModuleType("one_more"))
    assert garbage.settle()


def test_a_drawing_is_made_once_for_each_key_and_the_oldest_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    memories = {"drawings": state.Memory(2)}
    monkeypatch.setattr(state, "_memories", lambda: memories)
    made: list[object] = []

    def ask(name: str, key: object) -> object:
        return state.drawn(name, key, lambda: made.append((name, key)) or (name, key))

    assert [ask("a", 1), ask("a", 1), ask("b", 1), ask("a", 2)] == [("a", 1), ("a", 1), ("b", 1), ("a", 2)]
    assert made == [("a", 1), ("b", 1), ("a", 2)]
    ask("a", 1)
    assert len(made) == 4
