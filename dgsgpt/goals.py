"""What people come for, as configs fitted to this machine: a goal names its recipe, and what to expect of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgsgpt.config import RunConfig, load_config
from dgsgpt.costs import count_params
from dgsgpt.errors import ConfigError
from dgsgpt.fitting import override, verdict
from dgsgpt.hardware import Hardware
from dgsgpt.pace import Speed, duration_of
from dgsgpt.planner import fit_to, memory_of, plan
from dgsgpt.profiles import configs_dir

SpeedOf = Callable[[RunConfig], Speed | None]
HOUR_S = 3600.0
SPARE = 0.05  # of the hour, for validation of the whole split and saving
TOKENS_PER_PARAM = 20  # Hoffmann et al. 2022, table 3
STEPS = 4000  # about as many updates as the batch is chosen for
# layers, width, context: each about twice the arithmetic of the one before
_SHAPES = (
    (2, 64, 64), (2, 128, 64), (4, 128, 128), (4, 192, 128), (4, 256, 256), (6, 320, 256), (6, 384, 256),
    (8, 512, 512), (10, 640, 512), (12, 768, 1024), (16, 1024, 1024), (24, 1024, 1024), (24, 1536, 2048),
    (24, 2048, 2048), (32, 2560, 2048), (32, 4096, 4096),
)  # fmt: skip
_HEAD = 64


@dataclass(frozen=True)
class Goal:
    """What somebody wants; `recipe` is the shipped file it begins with."""

    name: str
    title: str
    says: str
    recipe: str


GOALS = (
    Goal("minute", "Try it in a minute", "A small model of Austen's novels, for a first look.", "demo"),
    Goal("hour", "Best in an hour", "As large as an hour here teaches 20 tokens a parameter.", "demo"),
    Goal("long-context", "Long context", "2 048 tokens, of which most layers see the last 256.", "long-context"),
    Goal("experts", "Mixture of experts", "8 networks in every second layer, 2 for each token.", "moe"),
    Goal("gpt2", "GPT-2 124M", "Reproduced by a recipe of today; wants a text of billions.", "gpt2-124m"),
)  # fmt: skip


@dataclass(frozen=True)
class Suggestion:
    """A goal as a config for this machine; `changes` say what was fitted, `expected` what the recipe measured."""

    goal: Goal
    config: RunConfig
    changes: tuple[str, ...]
    overrides: dict[str, Any]  # against the recipe
    expected: str


def recipe_path(goal: Goal) -> Path:
    """The shipped file of a goal."""
    return configs_dir() / f"{goal.recipe}.yaml"


def find_goal(name: str) -> Goal:
    """The goal of this name.

    Raises:
        ConfigError: there is none.
    """
    found = next((goal for goal in GOALS if goal.name == name), None)
    if found is None:
        raise ConfigError(f"goal {name!r} does not exist; choose one of {', '.join(goal.name for goal in GOALS)}")
    return found


def suggest(goal: Goal, machine: Hardware, speed_of: SpeedOf) -> Suggestion:
    """The config of a goal that fits this machine's free memory and, for the hour, its speed.

    Raises:
        ConfigError: nothing makes it fit, or the speed is not known that the hour needs.
    """
    config, overrides = load_config(recipe_path(goal)), dict[str, Any]()
    if goal.name == "hour":
        overrides = _hour(config, machine, speed_of)
        config = override(config, overrides)
    fitted = fit_to(config, machine)
    if fitted is None:
        raise ConfigError(f"goal {goal.name}: nothing makes it fit what is free; close other programs or take another")
    return Suggestion(goal, fitted.config, fitted.changes, {**overrides, **fitted.overrides}, expectation(goal))


def expectation(goal: Goal) -> str:
    """What the recipe's file says to expect, measured where the file says; empty where it says nothing."""
    if goal.name == "hour":
        return ""
    comments = [line[1:].strip() for line in recipe_path(goal).read_text().splitlines() if line.startswith("#")]
    found = re.search(r"Expect (.+?)\.(?= |$)", " ".join(comments))
    return found.group(1) if found else ""


# ---------------------------------------------------------------- an hour
def _hour(base: RunConfig, machine: Hardware, speed_of: SpeedOf) -> dict[str, Any]:
    """The largest shape that an hour teaches 20 tokens a parameter; the steps are what the hour yields."""
    best: dict[str, Any] | None = None
    for shape in _SHAPES:
        overrides = _shape(base, *shape)
        config = override(base, overrides)
        device, free_bytes = memory_of(config, machine)
        speed = speed_of(config)
        if speed is None:
            raise ConfigError("goal hour needs the speed of this machine; run `dgsgpt calibrate` first")
        steps = _steps_within(config, speed)
        enough = steps * config.tokens_per_step >= TOKENS_PER_PARAM * count_params(config.model, active=True)
        if best is not None and (not enough or verdict(plan(config, device).total_bytes, free_bytes) == "over"):
            break
        best = {**overrides, **_course(steps)}
    assert best is not None
    return best


def _shape(base: RunConfig, n_layer: int, n_embd: int, block_size: int) -> dict[str, Any]:
    heads = max(2, n_embd // _HEAD)
    shape = {
        "model.n_layer": n_layer,
        "model.n_embd": n_embd,
        "model.n_head": heads,
        "model.n_kv_head": heads,
        "model.block_size": block_size,
    }
    params = count_params(override(base, shape).model)
    wanted = TOKENS_PER_PARAM * params / STEPS / block_size  # sequences of a step
    sequences = 1 << max(2, round(wanted).bit_length() - 1)
    micro = min(sequences, 16)
    return {**shape, "train.micro_batch_size": micro, "train.grad_accum_steps": sequences // micro}


def _steps_within(config: RunConfig, speed: Speed) -> int:
    one = override(config, {"train.steps": 1000, "train.eval_every": 50})
    return max(20, int(1000 * HOUR_S * (1 - SPARE) / duration_of(one, speed).seconds))


def _course(steps: int) -> dict[str, Any]:
    """Steps in three figures, a validation and a checkpoint now and then, and an end where nothing is gained."""
    digits = 10 ** max(0, len(str(steps)) - 3)
    steps = steps // digits * digits
    twentieth = max(1, steps // 20)
    return {
        "train.steps": steps,
        "train.log_every": max(1, steps // 500),
        "train.eval_every": twentieth,
        "train.checkpoint_every": 2 * twentieth,
        "train.sample_every": 2 * twentieth,
        "train.early_stop_evals": 5,
    }
