"""The list of runs: filters, settings that differ, short names."""

from __future__ import annotations

from pathlib import Path

from dgsgpt.annotations import Annotation
from dgsgpt.config import build_config
from dgsgpt.runs import Run, Status
from dgsgpt.ui.runs_compare import short_names
from dgsgpt.ui.runs_list import FILTERS, Figures, RunEntry, choose, differing, filters, kept_by, settings_of
from tests.run_factory import CONFIG


def entry(run_id: str, state: str = "finished", said: Annotation | None = None, **model: object) -> RunEntry:
    config = build_config({**CONFIG, "model": {**CONFIG["model"], **model}})
    run, about = Run(Path("runs") / run_id), said or Annotation()
    return RunEntry(run, Status(state), config, Figures(), about, None, settings_of(config))


def test_a_filter_is_offered_where_it_parts_the_list() -> None:
    assert filters([entry("a"), entry("b")]) == ["all"]
    found = [entry("a"), entry("b", "failed"), entry("c", said=Annotation(archived=True))]
    assert filters(found) == ["all", "finished", "trouble", "archived"]


def test_archived_runs_are_kept_by_their_own_filter_alone() -> None:
    hidden = entry("a", "failed", Annotation(star=True, archived=True))
    assert [which for which in FILTERS if kept_by(hidden, which)] == ["archived"]
    assert choose([hidden, entry("b")], "all", "") == [entry("b")]


def test_settings_that_differ_come_by_tier_and_equal_ones_do_not() -> None:
    assert differing([entry("a"), entry("b")]) == []
    found = differing([entry("a"), entry("b", n_layer=4, norm_eps=1e-3)])
    assert found[0] == "model.n_layer"
    assert set(found) == {"model.n_layer", "model.norm_eps"}


def test_of_a_section_that_some_have_off_the_telling_settings_are_kept() -> None:
    found = differing([entry("a"), entry("b", moe={"n_expert": 4})])
    assert "model.moe.n_expert" in found
    assert "model.moe.z_loss_weight" not in found


def test_short_names_leave_out_what_all_begin_with() -> None:
    assert short_names([entry("austen-moe-s1"), entry("austen-moe-s2")]) == {
        "austen-moe-s1": "s1",
        "austen-moe-s2": "s2",
    }
    assert short_names([entry("austen"), entry("austen-2")]) == {"austen": "austen", "austen-2": "austen-2"}
    assert short_names([entry("a-b-c")]) == {"a-b-c": "a-b-c"}
