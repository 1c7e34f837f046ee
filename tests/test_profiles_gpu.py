"""The profiles on a real GPU that is allowed no more memory than they are made for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.capped import run_capped
from benchmarks.gpu import GB, PROFILES, profile_config, steady
from dgsgpt.costs import CUDA_RUNTIME_BYTES
from dgsgpt.planner import fit, plan
from dgsgpt.profiles import load_profile

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # fresh weights of billions of parameters, and steps of tens of thousands of tokens
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def need(budget: int) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    if budget > total:
        pytest.skip(f"this GPU has {total / GB:.0f} GB, the profile is made for {budget / GB:.0f}")


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_trains_within_its_budget(name: str) -> None:
    budget, steps = PROFILES[name]
    need(budget)
    config = profile_config(name)
    outcome = run_capped(config, budget, steps)
    assert outcome.fell > 0.1
    assert outcome.peak_bytes < budget - CUDA_RUNTIME_BYTES
    # The plan takes the CPU's operators; fused norms and losses of a GPU keep no more.
    assert outcome.peak_bytes < plan(config, "cuda").total_bytes - CUDA_RUNTIME_BYTES + 0.05 * budget


def test_the_medium_profile_fitted_to_a_card_of_24_gb_trains_there() -> None:
    fitted = fit(load_profile("medium").config, 24 * GB, "cuda")
    assert fitted is not None
    need(24 * GB)
    outcome = run_capped(steady(fitted.config, 1), 24 * GB, 6)
    assert outcome.fell > 0.1
    assert outcome.peak_bytes < 24 * GB - CUDA_RUNTIME_BYTES
