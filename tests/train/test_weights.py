"""Models whose matrices are stored in bfloat16: drawn as the usual ones are, and never held in float32."""

from __future__ import annotations

import pytest
import torch

from dgsgpt.model import GPT
from dgsgpt.train.weights import build_model, is_stored_narrow, store_weights
from tests.memory import LiveBytes
from tests.model.tiny import VARIANTS, tiny_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_built_in_bf16_is_like_one_that_was_converted(name: str) -> None:
    config = tiny_config(**VARIANTS[name])
    torch.manual_seed(1)
    converted = GPT(config)
    store_weights(converted, "bf16")
    torch.manual_seed(1)
    built = build_model(config, "bf16", CPU)
    own, other = built.state_dict(), converted.state_dict()
    assert list(own) == list(other)
    for key, tensor in own.items():
        assert (tensor.dtype, tensor.shape, tensor.device) == (other[key].dtype, other[key].shape, CPU), key
        spread = other[key].float().std(correction=0)
        assert tensor.float().std(correction=0) == pytest.approx(float(spread), rel=0.25, abs=1e-3), key
        assert tensor.isfinite().all()
    for key, parameter in built.named_parameters():
        assert parameter.dtype == (torch.bfloat16 if is_stored_narrow(key, parameter) else torch.float32)
    tokens = torch.randint(config.vocab_size or 0, (2, 8))
    with torch.autocast("cpu", torch.bfloat16):
        loss = built(tokens, tokens).loss
    assert loss is not None
    loss.backward()
    assert all(p.grad is not None for n, p in built.named_parameters() if "router" not in n)


def test_the_seed_decides_the_weights() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(build_model(tiny_config(), "bf16", CPU).embed.weight)
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


def test_building_in_bf16_never_holds_the_weights_in_float32() -> None:
    config = tiny_config(n_embd=256, n_layer=4)
    with LiveBytes() as live:
        model = build_model(config, "bf16", CPU)
    numbers = sum(p.numel() for p in model.parameters())
    largest = max(p.numel() for p in model.parameters())
    assert live.peak <= 2 * numbers + 8 * largest + 100_000
