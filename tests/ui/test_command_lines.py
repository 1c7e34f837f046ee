"""The command line that a draft shows makes exactly the draft's config."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from dgsgpt.config import RunConfig, build_config, load_config
from dgsgpt.goals import find_goal, recipe_path
from dgsgpt.profiles import load_profile, profile_path
from dgsgpt.ui import form
from dgsgpt.ui.command_lines import base_file, with_settings
from dgsgpt.ui.draft import Workbench
from tests.run_factory import config as tiny_config
from tests.run_factory import make_run


def bench(source: str = "profile") -> Workbench:
    values = form.draft_of(load_profile("cpu").config)
    return Workbench(values, values, "profile CPU", "cpu", source)


def made_by(command: str) -> RunConfig:
    """The config that the command trains."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["dgsgpt", "train"]
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    return load_config(words[2], overrides)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model.n_layer": 6, "train.lr": 1e-5},
        {"model.moe": {}},
        {"model.moe": {"n_expert": 4, "balance": "bias"}, "model.window": {"size": 64, "pattern": "SL"}},
        {"model.rope": None, "model.positions": "none"},
        {"model.rope.scaling": {"kind": "yarn", "factor": 4.0}},
        {"data.document_separator": "a 'quoted'\nline", "train.grad_clip": None},
    ],
)
def test_the_command_makes_the_same_config(tmp_path: Path, changes: dict[str, Any]) -> None:
    wanted = build_config(form.apply(load_profile("cpu").config.to_dict(), changes))
    assert made_by(with_settings(bench(), wanted, "mine", tmp_path)) == wanted


def test_a_section_that_is_switched_on_needs_few_words(tmp_path: Path) -> None:
    wanted = build_config(form.apply(load_profile("cpu").config.to_dict(), {"model.moe": {"n_expert": 4}}))
    command = with_settings(bench(), wanted, "mine", tmp_path)
    assert command.count("--set") == 2
    assert command.endswith("--run-id mine")


def test_a_draft_names_the_file_that_it_began_with(tmp_path: Path) -> None:
    make_run(tmp_path, "older", config=tiny_config())
    assert base_file(bench(), tmp_path) == profile_path("cpu")
    assert base_file(bench("goal:experts"), tmp_path) == recipe_path(find_goal("experts"))
    assert base_file(bench("older"), tmp_path) == tmp_path / "older" / "config.yaml"
    assert base_file(bench("yaml"), tmp_path) == profile_path("cpu")
