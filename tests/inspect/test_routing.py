"""The routing that is told is the one the model uses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dgsgpt.config import layer_is_moe
from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.inspect.routing import look_at_routing, routing
from dgsgpt.model import GPT
from dgsgpt.model.moe import MoE
from tests.model.experts import expert
from tests.model.tiny import VARIANTS, random_tokens, tiny_model

TOKENS = random_tokens(1, 30)[0]
KINDS = ["moe", "top1", "capacity", "bias_balanced", "biased_experts", "after_dense", "single", "all_new"]


def through_experts(model: GPT, layer: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """The MoE module of a layer, what it is given [T, C] and what comes out [T, C]."""
    moe = next(m for m in model.blocks[layer].modules() if isinstance(m, MoE))
    caught: list[torch.Tensor] = []
    hook = moe.register_forward_hook(lambda m, given, out: caught.extend((given[0][0], out[0][0])))
    with torch.no_grad():
        model.eval()(TOKENS[None])
    hook.remove()
    return moe, caught[0], caught[1]


def model_of(kind: str) -> GPT:
    model = tiny_model(**VARIANTS[kind])
    for module in model.modules():
        if isinstance(getattr(module, "bias", None), torch.Tensor) and hasattr(module, "rate"):
            module.bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))  # type: ignore[operator]
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_chosen_experts_weighted_as_told_give_what_the_layer_gives(kind: str) -> None:
    model = model_of(kind).train()  # in training some would be dropped
    found = routing(model, TOKENS)
    assert model.training
    assert [one.layer for one in found] == [i for i, sparse in enumerate(layer_is_moe(model.config)) if sparse]
    for one in found:
        moe, x, out = through_experts(model, one.layer)
        by_hand = torch.zeros_like(out)
        for t in range(len(TOKENS)):
            for e, w in zip(one.experts[t], one.weights[t], strict=True):
                by_hand[t] += float(w) * expert(moe, int(e), x[t])
        torch.testing.assert_close(by_hand, out, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["moe", "bias_balanced", "top1"])
def test_choices_and_weights_are_those_of_a_router_written_out(kind: str) -> None:
    model = model_of(kind)
    one = routing(model, TOKENS)[-1]
    moe, x, _ = through_experts(model, one.layer)
    for t, row in enumerate(x):
        odds = np.exp([float(row @ w) for w in moe.router.weight.detach()])
        shares = odds / odds.sum()
        drawn = shares + (moe.selection.bias.numpy() if kind == "bias_balanced" else 0.0)
        chosen = sorted(np.argsort(-drawn)[: moe.k], key=lambda e: -shares[e])
        assert one.experts[t].tolist() == chosen
        weights = shares[chosen] / (1.0 if moe.k == 1 else shares[chosen].sum())
        np.testing.assert_allclose(one.weights[t], weights, atol=1e-5)


def test_a_dense_model_has_no_routing() -> None:
    assert routing(tiny_model(), TOKENS) == []
    look = look_at_routing(tiny_model(vocab_size=256), ByteTokenizer(), [65, 66])
    assert (look.layers, look.per_token, look.shared) == ((), 0, "")


def test_a_look_tells_the_last_tokens_their_load_and_what_is_shared() -> None:
    moe = {"n_expert": 4, "n_shared_expert": 2, "dense_residual": True}
    model, tokenizer = tiny_model(vocab_size=256, moe=moe), ByteTokenizer()
    ids = tokenizer.encode("x" * 20 + "It was the first time that she had seen him.")
    look = look_at_routing(model, tokenizer, ids, last=10)
    assert (look.read, look.first, look.cut, look.per_token) == (48, 38, len(ids) - 48, 2)
    assert look.shared == "2 shared experts and a dense network"
    whole = routing(model, torch.tensor(ids[-48:]))
    for one, full in zip(look.layers, whole, strict=True):
        assert one.experts.tolist() == full.experts[-10:].tolist()
        grid = one.grid()
        assert grid.shape == (4, 10)
        np.testing.assert_allclose(grid.sum(0), 1.0, atol=1e-6)
        assert (np.count_nonzero(grid, axis=0) == 2).all()
        np.testing.assert_allclose(one.load(), np.count_nonzero(grid, axis=1) / 20)
    told = look.to_dict()
    assert told["layers"][1]["experts"] == look.layers[1].experts.tolist()
    assert len(told["tokens"]) == 10
