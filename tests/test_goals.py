"""Goals: configs for this machine that keep what they promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from dgsgpt import goals, hardware
from dgsgpt.cli import main
from dgsgpt.config import RunConfig, load_config
from dgsgpt.costs import count_params
from dgsgpt.errors import ConfigError
from dgsgpt.fitting import override, verdict
from dgsgpt.goals import GOALS, find_goal, suggest
from dgsgpt.hardware import Hardware
from dgsgpt.pace import Speed, duration_of
from dgsgpt.planner import plan

GIB = 1 << 30


def machine(free: float = 20.0) -> Hardware:
    found = replace(hardware.detect(), gpus=(), ram_total_bytes=24 * GIB)
    return replace(found, ram_available_bytes=int(free * GIB))


def at(flops_per_s: float) -> goals.SpeedOf:
    return lambda config: Speed(flops_per_s, flops_per_s, flops_per_s, "calibration", "the calibration")


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: goal.name)
def test_a_goal_fits_what_is_free_and_is_its_recipe_with_the_changes_it_names(goal: goals.Goal) -> None:
    found = suggest(goal, machine(), at(1e11))
    assert verdict(plan(found.config, "cpu").total_bytes, 20 * GIB) == "fits"
    assert override(load_config(goals.recipe_path(goal)), found.overrides) == found.config
    assert bool(found.changes) <= bool(found.overrides)


def test_little_memory_changes_the_recipe_and_says_how() -> None:
    found = suggest(find_goal("gpt2"), machine(free=4), at(1e11))
    assert found.changes
    assert verdict(plan(found.config, "cpu").total_bytes, 4 * GIB) == "fits"
    with pytest.raises(ConfigError, match="nothing makes it fit"):
        suggest(find_goal("gpt2"), machine(free=0.5), at(1e11))


@pytest.mark.parametrize("flops_per_s", [2e10, 1e11, 4e14])
def test_an_hour_is_an_hour_and_teaches_twenty_tokens_a_parameter(flops_per_s: float) -> None:
    found = suggest(find_goal("hour"), machine(), at(flops_per_s))
    seconds = duration_of(found.config, at(flops_per_s)(found.config) or pytest.fail("no speed")).seconds
    assert 0.85 * goals.HOUR_S <= seconds <= goals.HOUR_S
    tokens, params = plan(found.config).total_tokens, count_params(found.config.model, active=True)
    assert tokens >= 0.9 * goals.TOKENS_PER_PARAM * params  # steps are rounded down


def test_a_faster_machine_gets_a_larger_model() -> None:
    sizes = [plan(suggest(find_goal("hour"), machine(), at(s)).config).params for s in (1e10, 1e12, 1e14)]
    assert sizes == sorted(set(sizes))


def test_without_a_measured_speed_no_hour_is_promised() -> None:
    def unknown(_: RunConfig) -> None:
        return None

    with pytest.raises(ConfigError, match="run `dgsgpt calibrate` first"):
        suggest(find_goal("hour"), machine(), unknown)
    assert suggest(find_goal("minute"), machine(), unknown).config.train.steps


@pytest.mark.parametrize("name", ["minute", "long-context", "experts"])
def test_what_to_expect_is_what_the_recipe_s_file_says(name: str) -> None:
    goal = find_goal(name)
    said = goals.expectation(goal)
    assert "bits per byte" in said
    assert said.split(" ", 1)[0] in goals.recipe_path(goal).read_text()


def test_the_command_lists_goals_and_writes_one(runs_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "goal.yaml"
    listed = CliRunner().invoke(main, ["goals", "--json", "--runs-dir", str(runs_dir)])
    assert [row["name"] for row in json.loads(listed.output)] == [goal.name for goal in GOALS]
    written = CliRunner().invoke(main, ["goals", "minute", "--write", str(path), "--runs-dir", str(runs_dir)])
    assert written.exit_code == 0, written.output
    assert load_config(path).model.n_layer == load_config(goals.recipe_path(find_goal("minute"))).model.n_layer
    again = CliRunner().invoke(main, ["goals", "minute", "--write", str(path), "--runs-dir", str(runs_dir)])
    assert again.exit_code == 2
    assert CliRunner().invoke(main, ["goals", "fame", "--runs-dir", str(runs_dir)]).exit_code == 2
