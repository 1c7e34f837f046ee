"""Shared fixtures: a tiny text, a tiny config, and folders of their own for runs and datasets."""

from __future__ import annotations

import os

# Tiny matrices on one thread are faster than on two, and every child process inherits it. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from dgsgpt.config import RunConfig, build_config
from dgsgpt.rules import put

hypothesis.settings.register_profile("untimed", deadline=None)  # time never decides a test
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def datasets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of prepared datasets for the whole session: they are cached by fingerprint."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, datasets_dir: Path) -> None:
    monkeypatch.setenv("DGSGPT_DATASETS", str(datasets_dir))
    monkeypatch.setenv("DGSGPT_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 kB of sentences that follow simple rules, so that a tiny model learns them in seconds."""
    chance = random.Random(7)
    words = ("the cat saw a dog", "a bird sang to the moon", "she walked home in the rain", "he read an old letter")
    path = tmp_path_factory.mktemp("text") / "tiny.txt"
    path.write_text("\n".join(chance.choice(words) + "." for _ in range(1500)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def make_config(tiny_text: Path) -> Callable[..., RunConfig]:
    """A small config on the tiny text; settings by dotted name: `make_config(**{"model.n_layer": 1})`."""

    def make(**changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "data": {"corpus": str(tiny_text), "tokenizer": {"kind": "byte"}},
            "model": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32},
            "train": {
                "steps": 20,
                "micro_batch_size": 4,
                "lr": 3e-3,
                "schedule": {"warmup_steps": 2},
                "eval_every": 10,
                "eval_tokens": 512,
                "checkpoint_every": 10,
                "log_every": 1,
                "device": "cpu",
            },
        }
        for path, value in changes.items():
            values = put(values, path, value)
        return build_config(values)

    return make
