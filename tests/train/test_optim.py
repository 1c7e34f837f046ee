from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch

from dgsgpt.config import RunConfig, TrainConfig, build_config
from dgsgpt.errors import RunError
from dgsgpt.model import GPT
from dgsgpt.train import muon, update_rules
from dgsgpt.train.optim import build_updates
from dgsgpt.train.weights import store_weights
from dgsgpt.update_groups import state_bytes
from dgsgpt.update_groups import update_groups as planned_groups
from tests.model.tiny import TINY, VARIANTS, tiny_model
from tests.train.updating import FEW_SHAPES, PRECISIONS, RULES, bits, everything, give_gradients, steps, trained


# ---------------------------------------------------------------- groups
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_in_one_group_and_gets_its_update(variant: str, optimizer: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    updates = build_updates(model, TrainConfig(optimizer=optimizer))  # type: ignore[arg-type]
    shapes = dict(model.named_parameters())
    listed = [name for group in updates.groups for name in group.parameters]
    assert sorted(listed) == sorted(shapes)
    for group in updates.groups:
        assert group.numbers == sum(shapes[n].numel() for n in group.parameters)
        matrix = {n: shapes[n].ndim >= 2 and not n.endswith("bias") for n in group.parameters}
        assert all(matrix[n] == (group.weight_decay > 0) for n in group.parameters)
        inner = [n.startswith("blocks.") and "router" not in n and matrix[n] for n in group.parameters]
        assert all(inner) if group.rule == "muon" else not (any(inner) and optimizer == "muon")
        assert group.lr == (0.02 if group.rule == "muon" else 1e-3)
    before = bits(model.state_dict())
    give_gradients(model, 0)
    updates.step()
    after = bits(model.state_dict())
    assert [n for n in shapes if before[n] == after[n]] == []


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", RULES)
@pytest.mark.parametrize("variant", ["gqa", "all", "all_new", "relu2", "head_size", "original"])
def test_groups_and_state_are_what_the_plan_counts(variant: str, optimizer: str, precision: str) -> None:
    shape = {**TINY, **VARIANTS[variant], "n_embd": 64}
    train = {"optimizer": optimizer, "weight_precision": precision}
    config: RunConfig = build_config({"data": {"tokenizer": {"kind": "char"}}, "model": shape, "train": train}, "test")
    model = tiny_model(**{**VARIANTS[variant], "n_embd": 64})
    store_weights(model, config.train.weight_precision)
    updates = build_updates(model, config.train)
    found = {(g.name, g.rule, g.lr, g.weight_decay, g.numbers) for g in updates.groups}
    assert found == {(g.name, g.rule, g.lr, g.weight_decay, g.numbers) for g in planned_groups(config)}
    tensors = {n: t for n, t in updates.tensors().items() if not n.startswith(("step.", "rounding."))}
    assert sum(t.nbytes for t in tensors.values()) == state_bytes(config)


# ---------------------------------------------------------------- each rule against its reference
def reference(model: GPT, train: TrainConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of torch and torchao, as their documentation has them, on the parameters they are for."""
    named = list(model.named_parameters())
    vectors = [p for _, p in named if p.ndim < 2]
    blocks = [p for n, p in named if p.ndim > 1 and n.startswith("blocks.")]
    others = [p for n, p in named if p.ndim > 1 and not n.startswith("blocks.")]
    adam: dict[str, Any] = {"lr": train.lr, "betas": (train.beta1, train.beta2)}
    if train.optimizer == "muon":
        decayed = {"params": others, "weight_decay": train.weight_decay}
        return [
            torch.optim.Muon(blocks, lr=train.muon_lr, weight_decay=train.weight_decay, momentum=train.muon_momentum),
            torch.optim.AdamW([decayed, {"params": vectors, "weight_decay": 0.0}], **adam),
        ]
    groups = [
        {"params": blocks + others, "weight_decay": train.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if train.optimizer == "adafactor":
        return [torch.optim.Adafactor(groups, lr=train.lr)]
    if train.optimizer == "adamw":
        return [torch.optim.AdamW(groups, **adam)]
    from torchao.optim import AdamW8bit

    return [AdamW8bit(groups, **adam)]


@pytest.mark.parametrize("optimizer", RULES)
def test_float32_weights_move_as_by_the_reference(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "iteration_dtype", lambda device: torch.bfloat16)  # torch's Muon has no other
    model, updates = trained(optimizer, weight_decay=0.3)
    start, other = tiny_model(**FEW_SHAPES), tiny_model(**FEW_SHAPES)
    theirs = reference(other, TrainConfig.model_validate({"optimizer": optimizer, "weight_decay": 0.3}))
    for index in range(4):
        give_gradients(model, index)
        give_gradients(other, index)
        updates.step()
        for one in theirs:
            one.step()
    for a, b, before in zip(model.parameters(), other.parameters(), start.parameters(), strict=True):
        moved = (b - before).norm()
        assert moved > 1e-4
        assert (a - b).norm() < (3e-3 if optimizer == "muon" else 1e-4) * moved


@pytest.mark.parametrize("optimizer", RULES)
def test_bfloat16_weights_move_to_a_neighbour_of_what_float32_ones_would(optimizer: str) -> None:
    model, updates = trained(optimizer, "bf16")
    exact = copy.deepcopy(model).float()
    others = build_updates(exact, TrainConfig.model_validate({"optimizer": optimizer}))
    give_gradients(model, 0)
    for p, q in zip(model.parameters(), exact.parameters(), strict=True):
        q.grad = p.grad.float()  # type: ignore[union-attr]
    updates.step()
    others.step()
    for (name, p), q in zip(model.named_parameters(), exact.parameters(), strict=True):
        if p.dtype == torch.float32:
            assert torch.allclose(p, q, rtol=1e-6, atol=1e-8), name
            continue
        spacing = torch.finfo(torch.bfloat16).eps * q.abs()  # of neighbours, at most
        assert bool(((p.float() - q).abs() <= spacing * 1.001 + 1e-8).all()), name
        unequal = p.float() != q
        up = (p.float() > q)[unequal].float().mean()
        assert 0.4 < up < 0.6, name  # all rounded one way would be a bias


@pytest.mark.parametrize("optimizer", RULES)
def test_the_state_made_at_once_is_what_the_optimizer_would_make(optimizer: str) -> None:
    model, updates = trained(optimizer)
    made = {n: (t.shape, t.dtype, t.device) for n, t in updates.tensors().items()}
    for unit in updates._units:
        unit.optimizer.state.clear()
    steps(model, updates, 0, 1)
    assert {n: (t.shape, t.dtype, t.device) for n, t in updates.tensors().items()} == made


def test_rates_are_a_share_of_each_groups_peak() -> None:
    model, updates = trained("muon", lr=1e-3, muon_lr=0.01, weight_decay=0.0)
    twin, halved = trained("muon", lr=5e-4, muon_lr=0.005, weight_decay=0.0)
    for m, u, share in ((model, updates, 0.5), (twin, halved, 1.0)):
        give_gradients(m, 0)
        u.set_rates(share)
        u.step()
    assert everything(model, updates) == everything(twin, halved)


# ---------------------------------------------------------------- skipping
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", RULES)
def test_a_skipped_step_leaves_every_bit(optimizer: str, precision: str) -> None:
    model, updates = trained(optimizer, precision)
    for index in (0, 2):  # the first step ever, and a later one
        before = everything(model, updates)
        for p in model.parameters():
            p.grad = torch.full_like(p, float("nan"))
        updates.step(torch.ones(()))
        assert everything(model, updates) == before
        steps(model, updates, index, 2)
        assert everything(model, updates) != before


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_that_the_device_skips_by_itself_leaves_every_bit(optimizer: str, precision: str) -> None:
    model, updates = trained(optimizer, precision)
    steps(model, updates, 0, 2)
    before = bits({**model.state_dict(), **updates._state()})
    for value, skip in ((float("nan"), 1.0), (0.1, 0.0)):
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        for unit in updates._units:
            updates._apply(unit, torch.tensor(skip))  # as `step` does for a flag on a GPU
        assert (bits({**model.state_dict(), **updates._state()}) == before) == bool(skip)


@pytest.mark.parametrize("optimizer", RULES)
def test_a_step_not_to_be_skipped_is_the_ordinary_one(optimizer: str) -> None:
    (model, updates), (twin, plain) = trained(optimizer), trained(optimizer)
    give_gradients(model, 0)
    give_gradients(twin, 0)
    updates.step(torch.zeros(()))
    plain.step()
    assert everything(model, updates) == everything(twin, plain)


# ---------------------------------------------------------------- what may be missing
def test_torchao_missing_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(RunError, match=r'adamw8bit needs torchao.*pip install "dgsgpt\[lowbit\]"') as caught:
        trained("adamw8bit")
    assert "\n" not in str(caught.value)


@pytest.mark.slow  # importing torchao alone takes seconds
def test_a_missing_compiler_is_told_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_rules, "compiler_problem", lambda device: "no compiler was found")
    with pytest.raises(RunError, match=r"compiles its step, but no compiler was found.*adafactor") as caught:
        trained("adamw8bit")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_moments_of_the_8bit_rule_have_8_bits() -> None:
    _, updates = trained("adamw8bit")
    tensors = updates.tensors()
    assert tensors["exp_avg_codes.embed.weight"].dtype == torch.uint8
    assert tensors["exp_avg_sq_scale.embed.weight"].shape == (64 * 64 // 256,)
    assert tensors["exp_avg.norm.weight"].dtype == torch.float32
