"""The Configure page: goals, times that were measured here, dry runs, the queue, tiers, and drafts that are kept."""

from __future__ import annotations

import html
import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from dgsgpt import calibrate, dry_run, files, goals, process
from dgsgpt.calibrate import Calibration, Rate
from dgsgpt.config import build_config, load_config
from dgsgpt.dry_run import DryRun
from dgsgpt.format import duration, percent, step_time
from dgsgpt.pace import Evidence, arithmetic_per_token, duration_of
from dgsgpt.planner import plan
from dgsgpt.profiles import load_profile
from dgsgpt.run_queue import read_queue
from dgsgpt.runs import list_runs
from dgsgpt.ui import form, kept_drafts, ranges, state, tiers
from dgsgpt.ui.app import ROUTER, page_file
from tests.pages.configure_page import (
    all_settings,
    bench,
    draft_value,
    machine,
    open_page,
    set_to,
    settled,
    shown,
    start_button,
)

__all__ = ["machine"]  # a fixture that every test here uses


def press(at: AppTest, key: str) -> AppTest:
    return settled(at.button(key=key).click().run())


def calibrated(root: Path, per_s: float = 1e11) -> Calibration:
    sizes = {"small": 1e8, "medium": 1e12}
    rates = tuple(Rate(size, "fp32", 1, flops, per_s, per_s / 2, per_s, 9) for size, flops in sizes.items())
    found = Calibration(time.time(), "cpu", state.machine().name, 1, "2", 0.0, rates)
    root.mkdir(parents=True, exist_ok=True)
    files.write_json(root / calibrate.FILE, found.to_dict())
    return found


def tried(root: Path, **changes: Any) -> DryRun:
    """A dry run of the profile that the page begins with."""
    config = load_profile("cpu").config
    values: dict[str, Any] = {
        "id": "b" * 16, "at": time.time(), "title": "austen-4x256", "fingerprint": dry_run.fingerprint(config),
        "device": "cpu", "name": state.machine().name, "steps": 3, "total_steps": config.train.steps,
        "predicted_bytes": 1 << 30, "predicted_step_s": 2.0, "predicted_by": "the calibration",
        "step_times": (9.0, 1.0, 1.5), "step_s": 1.25, "set_up_s": 4.0, "peak_bytes": 3 << 29,
        "tokens_per_step": config.tokens_per_step, "settled": {"precision": "fp32", "compile": "off"},
    }  # fmt: skip
    found = DryRun(**{**values, **changes})
    root.mkdir(parents=True, exist_ok=True)
    dry_run.keep(root, found)
    return found


# ---------------------------------------------------------------- goals
def test_a_goal_begins_the_draft_with_its_fitted_recipe(runs_dir: Path) -> None:
    found = calibrated(runs_dir)
    at = set_to(open_page(), "tier", tiers.GOAL)
    assert not [w for w in at.number_input if w.key == "set_model-n_layer"]  # knobs are of the next tier
    press(at, "goal_experts")
    recipe = load_config(goals.recipe_path(goals.find_goal("experts")))
    assert bench(at).draft == form.draft_of(recipe)
    assert at.button(key="goal_experts").disabled
    assert not at.button(key="use_cpu").disabled  # no profile is the base now
    speed = Evidence(state.machine(), (), (), found).speed_of(recipe)
    assert speed is not None
    page = shown(at)
    assert f"about {duration(duration_of(recipe, speed).seconds)} here" in page
    assert html.escape(f"Expect {goals.expectation(goals.find_goal('experts'))}.") in page
    press(at, "undo")
    assert bench(at).draft == form.draft_of(load_profile("cpu").config)


def test_the_hour_asks_for_a_calibration_first(runs_dir: Path) -> None:
    at = set_to(open_page(), "tier", tiers.GOAL)
    assert at.button(key="goal_hour").disabled
    assert "calibrate" in at.button(key="goal_hour").help
    calibrated(runs_dir)
    press(settled(at.run()), "goal_hour")
    assert bench(at).source == "goal:hour"


# ---------------------------------------------------------------- time
def test_a_calibration_gives_a_band_and_names_itself(runs_dir: Path) -> None:
    found = calibrated(runs_dir)
    config = load_profile("cpu").config
    speed = Evidence(state.machine(), (), (), found).speed_of(config)
    assert speed is not None
    wanted = duration_of(config, speed)
    page = shown(open_page())
    assert f"{duration(wanted.low)} to {duration(wanted.high)}, by the calibration" in page
    assert "Calibrated just now" in page


def test_calibrating_measures_and_the_time_appears(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(root: Path, machine: Any, seconds: float = 0.0) -> Any:
        yield "small model in fp32", 0.5
        calibrated(root)

    at = open_page()
    assert "measured after the first run" in shown(at)
    monkeypatch.setattr(calibrate, "measure", measured)
    press(at, "calibrate")
    assert "by the calibration" in shown(at)


# ---------------------------------------------------------------- dry runs
def test_a_dry_run_of_this_draft_is_shown_and_tells_the_time(runs_dir: Path) -> None:
    found = tried(runs_dir)
    calibrated(runs_dir)
    at = open_page()
    page = shown(at)
    assert "+50 %" in page.replace("\xa0", " ")  # of memory
    assert step_time(1.25) in page
    assert "by a dry run" in page
    set_to(at, "set_model-n_layer", 5)
    assert "by a dry run" not in shown(at)
    assert found.title in shown(at)  # in the history


def test_a_dry_run_that_ran_out_of_memory_shows_the_advice(runs_dir: Path) -> None:
    tried(runs_dir, step_s=None, step_times=(), peak_bytes=None, error="out of memory: set <b>train</b>")
    page = shown(open_page())
    assert "out of memory: set &lt;b&gt;train" in page


def test_the_button_begins_a_dry_run_of_the_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []
    monkeypatch.setattr(dry_run, "begin", lambda *arguments: begun.append(arguments))
    at = set_to(open_page(), "set_model-n_layer", 5)
    press(at, "dry_run")
    (_, config, _, steps, step_s, by) = begun[0]
    assert (config.model.n_layer, steps, step_s, by) == (5, dry_run.STEPS, None, "")


def test_one_at_work_says_how_far_it_is_and_can_be_cancelled(runs_dir: Path) -> None:
    request = replace(tried(runs_dir), id="c" * 16, at=time.time())
    folder = runs_dir / dry_run.FOLDER / request.id
    folder.mkdir(parents=True)
    (folder / dry_run.REQUEST).write_text(json.dumps(request.to_dict()))
    files.write_json(folder / "proc.json", process.identify(os.getpid()))
    files.write_json(folder / "status.json", {"message": "step 2 of 3", "step": 1})
    at = open_page()
    assert at.button(key="dry_run").disabled
    assert [b for b in at.button if b.key == "dry_cancel"]
    assert not start_button(at).disabled


def test_a_draft_that_is_too_large_for_a_cpu_gets_no_dry_run(machine: Any) -> None:
    machine(ram_available_bytes=100 << 20)
    at = open_page()
    assert at.button(key="dry_run").disabled
    assert "more memory than is free" in at.button(key="dry_run").help


def test_where_it_fits_more_room_is_offered_with_its_price(machine: Any) -> None:
    config = load_profile("cpu").config
    need = plan(config, "cpu").total_bytes
    machine(ram_available_bytes=int(1.5 * need))
    at = open_page()
    page = shown(at)
    assert "More room, if you want it" in page
    assert "computed, not measured" in page
    full = build_config(form.apply(config.to_dict(), {"train.gradient_checkpointing": "full"}))
    more = arithmetic_per_token(full) / arithmetic_per_token(config) - 1
    assert f"+{percent(more, 0)} time" in page
    machine(ram_available_bytes=4 * need)
    assert "More room" not in shown(settled(at.run()))


# ---------------------------------------------------------------- the queue
def test_a_run_can_be_put_into_the_queue(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgsgpt.run_queue.ensure_runner", lambda root: False)
    at = set_to(open_page(), "run_name", "later")
    press(at, "enqueue")
    assert read_queue(runs_dir).ids == ("later",)
    assert [run.id for run in list_runs(runs_dir)] == ["later"]
    assert list_runs(runs_dir)[0].status().state == "queued"


# ---------------------------------------------------------------- marks, tiers
def test_an_arrow_beside_a_changed_knob_leads_back() -> None:
    at = set_to(open_page(), "set_train-steps", 900)
    set_to(at, "set_train-seed", 5)
    assert "600" in at.button(key="back_train.steps").help
    press(at, "back_train.steps")
    assert (draft_value(at, "train.steps"), draft_value(at, "train.seed")) == (600, 5)
    assert not [b for b in at.button if b.key == "back_train.steps"]


def test_what_was_undone_can_be_made_again_until_something_else_is_done() -> None:
    at = press(set_to(open_page(), "set_train-seed", 5), "undo")
    press(at, "redo")
    assert draft_value(at, "train.seed") == 5
    press(at, "undo")
    set_to(at, "set_train-seed", 6)
    assert not [b for b in at.button if b.key == "redo"]


def test_changes_that_a_tier_does_not_show_are_counted_and_one_click_away() -> None:
    at = open_page()
    bench(at).change(form.apply(bench(at).draft, {"train.eval_tokens": 4096, "train.seed": 2}))
    settled(at.run())
    assert "1\xa0setting not shown here differs from profile CPU: Evaluation tokens" in shown(at)
    press(at, "show_hidden")
    assert at.segmented_control(key="tier").value == tiers.ALL
    page = shown(at)
    assert "train.eval_tokens" in page
    assert "train.seed" in page
    assert "train.keep_last" not in page  # only what differs


def test_a_number_of_a_wide_range_has_a_slider_over_its_logarithm() -> None:
    at = set_to(all_settings(open_page()), "q", "train.steps")
    set_to(at, "log_train-steps", 5000)
    assert draft_value(at, "train.steps") == 5000
    set_to(at, "set_train-steps", 5001)
    assert at.select_slider(key="log_train-steps").value == 5001


@pytest.mark.parametrize("path", [p for p, s in form.SETTINGS.items() if ranges.log_rungs(s)])
def test_sliders_stay_within_the_bounds_of_the_schema(path: str) -> None:
    setting = form.SETTINGS[path]
    rungs = ranges.log_rungs(setting)
    assert rungs == sorted(set(rungs))
    assert all(isinstance(rung, setting.type) for rung in rungs)
    assert rungs[0] >= (setting.minimum or 0)
    assert setting.maximum is None or rungs[-1] <= setting.maximum


# ---------------------------------------------------------------- kept drafts
def reloaded(draft_id: str) -> AppTest:
    at = AppTest.from_file(str(ROUTER), default_timeout=60).run()
    at.switch_page(str(page_file("configure")))
    at.query_params[kept_drafts.PARAMETER] = draft_id
    return settled(at.run())


def test_a_reload_of_the_page_keeps_the_draft() -> None:
    at = set_to(set_to(open_page(), "set_model-n_layer", 7), "run_name", "mine")
    again = reloaded(bench(at).id)
    assert bench(again).draft == bench(at).draft
    assert (bench(again).base_title, bench(again).name) == ("profile CPU", "mine")


def test_a_reload_keeps_the_goal_and_that_everything_was_reset(runs_dir: Path) -> None:
    at = press(set_to(open_page(), "tier", tiers.GOAL), "goal_minute")
    assert bench(reloaded(bench(at).id)).source == "goal:minute"
    set_to(at, "tier", tiers.ESSENTIALS)
    press(set_to(at, "set_model-n_layer", 7), "reset_all")
    again = reloaded(bench(at).id)
    assert bench(again).draft == bench(again).base == bench(at).base
    assert not [b for b in open_page().button if b.key == "restore_draft"]  # nothing that would be lost


def test_a_new_tab_is_offered_the_draft_of_another_and_no_longer_once_its_run_began(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgsgpt.ui.launchpad.start_run", lambda run: None)
    first = set_to(open_page(), "t_moe", True)
    second = open_page()
    assert "1\xa0change" in second.button(key="restore_draft").label
    press(second, "restore_draft")
    assert bench(second).draft == bench(first).draft
    settled(start_button(first).click().run())
    assert not [b for b in open_page().button if b.key == "restore_draft"]


@pytest.mark.parametrize("damage", ["../../etc", "f" * 12, "nonsense", "schema", "type"])
def test_a_draft_that_cannot_be_read_is_left_alone(runs_dir: Path, damage: str) -> None:
    at = set_to(open_page(), "set_model-n_layer", 7)
    path = runs_dir / kept_drafts.FOLDER / f"{bench(at).id}.json"
    values = json.loads(path.read_text())
    if damage == "nonsense":
        path.write_text("[1, 2")
    if damage == "schema":
        del values["draft"]["model"]["n_layer"]
        path.write_text(json.dumps(values))
    if damage == "type":
        values["draft"]["model"]["n_layer"] = "<b>many</b>"
        path.write_text(json.dumps(values))
    asked = damage if damage not in ("nonsense", "schema", "type") else path.stem
    assert bench(reloaded(asked)).draft == form.draft_of(load_profile("cpu").config)
