"""Going on from a checkpoint: what must be as it was, and what is put back.

A run that goes on gives the same numbers as one that was never stopped, on the same machine, versions and threads.
"""

from __future__ import annotations

import platform
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import RunConfig, load_config
from dgsgpt.errors import RunError
from dgsgpt.recipe import refused, spend
from dgsgpt.rules import differences

DATA, TOKENIZER = "data fingerprint", "tokenizer"
SHOWN = 6


def check_unchanged(
    run_dir: Path, path: Path, config: RunConfig, *, data_fingerprint: str, tokenizer_sha256: str
) -> dict[str, list[Any]]:
    """What is no longer as it was when the checkpoint at `path` was saved, as `{what: [then, now]}`.

    Raises:
        RunError: something is, and the user has not said that it may be.
    """
    state = files.read_json(path / ck.STATE) or {}
    changed = dict(differences(load_config(path / ck.CONFIG).to_dict(), config.to_dict()))
    for name, key, now in (
        (DATA, "data_fingerprint", data_fingerprint),
        (TOKENIZER, "tokenizer_sha256", tokenizer_sha256),
    ):
        if state.get(key) != now:
            changed[name] = (str(state.get(key))[:12], now[:12])
    not_allowed = refused(run_dir, changed)
    if not_allowed:
        shown = ", ".join(f"{k}: {was!r} -> {now!r}" for k, (was, now) in list(not_allowed.items())[:SHOWN])
        more = f" and {len(not_allowed) - SHOWN} more" if len(not_allowed) > SHOWN else ""
        raise RunError(
            f"{path}: is of another recipe than the run has now ({shown}{more}); put it back, or go on with the "
            f"change by `dgsgpt resume {run_dir.name} --force`"
        )
    spend(run_dir, changed)
    return {k: list(v) for k, v in changed.items()}


# ---------------------------------------------------------------- randomness
def random_tensors(device: torch.device) -> dict[str, Tensor]:
    """State of torch's generators, of which dropout draws."""
    states = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(device)
    return states


def random_numbers() -> dict[str, Any]:
    """State of the generators of Python and NumPy; nothing here draws from them, but a library might."""
    version, python, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(python), gauss],
        "numpy": [kind, [int(k) for k in keys], place, has_gauss, cached],
    }


def restore_random(tensors: dict[str, Tensor], numbers: Mapping[str, Any] | None, device: torch.device) -> None:
    """Put back what the two functions above gave, taking it out of `tensors`."""
    torch.set_rng_state(tensors.pop("rng.cpu").cpu())
    cuda = tensors.pop("rng.cuda", None)
    if cuda is not None and device.type == "cuda":
        torch.cuda.set_rng_state(cuda.cpu(), device)
    if numbers:
        version, python, gauss = numbers["python"]
        random.setstate((version, tuple(python), gauss))
        kind, keys, *rest = numbers["numpy"]
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


# ---------------------------------------------------------------- the machine
def describe_environment(device: torch.device) -> dict[str, Any]:
    """What the bits of a result depend on beside the recipe."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "system": platform.system(),
    }


def compare_environments(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str | None:
    """One line on why the run cannot go on bit for bit here; None where it can."""
    changed = [f"{name} {then[name]} -> {now[name]}" for name in now if then and then.get(name, now[name]) != now[name]]
    return f"not bit-exact from here on: {', '.join(changed)}" if changed else None
