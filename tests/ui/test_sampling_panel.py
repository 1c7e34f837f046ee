"""Presets of the page are those of the command line, and sliders mean what they say."""

from __future__ import annotations

import pytest
import streamlit
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.generation.presets import PRESETS
from dgsgpt.ui import sampling_panel as panel


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_moves_the_sliders_to_what_the_command_line_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"pg_new": 5, "pg_seed": 1, "pg_stop_at": "", **panel.sliders_of(name)}
    monkeypatch.setattr(streamlit, "session_state", state)
    given_by_sliders = panel.settings()
    assert {rule: given_by_sliders[rule] for rule in PRESETS[name]} == PRESETS[name]
    assert panel.preset_of(state) == name
    assert panel.preset_of({**state, "pg_temp": 0.71}) is None


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_lies_on_the_sliders(name: str) -> None:
    values = panel.sliders_of(name)
    assert values["pg_top_k"] in panel.TOP_K
    assert 0.05 <= values["pg_top_p"] <= 1
    assert 0 <= values["pg_temp"] <= 2
    assert 0 <= values["pg_min_p"] <= 0.5
    assert 1 <= values["pg_penalty"] <= 2


@given(st.text(alphabet="ab\n\t\\"))
def test_escapes_are_read_back(text: str) -> None:
    typed = text.replace("\\", "\\\\").replace("\n", r"\n").replace("\t", r"\t")
    assert panel.unescape(typed) == text


def test_after_the_last_seed_comes_the_first() -> None:
    assert panel.next_seed(panel.MAX_SEED) == 0
    assert panel.next_seed(panel.MAX_SEED - 1, 3) == 1
    assert panel.next_seed(42) == 43
