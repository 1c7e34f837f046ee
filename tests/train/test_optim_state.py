from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dgsgpt.config import TrainConfig
from dgsgpt.errors import CheckpointError
from dgsgpt.model import GPT
from dgsgpt.train.optim import Updates, build_updates
from dgsgpt.train.weights import store_weights
from tests.model.tiny import VARIANTS, random_tokens, tiny_model
from tests.train.updating import FEW_SHAPES, PRECISIONS, RULES, Bits, bits, everything, loss_of, steps, trained


# ---------------------------------------------------------------- resuming
@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", RULES)
def test_restored_updates_go_on_bit_for_bit(optimizer: str, precision: str, in_backward: bool) -> None:
    extra = {"optimizer_in_backward": True, "grad_clip": None} if in_backward else {}

    def go_on(model: GPT, updates: Updates, first: int, count: int) -> None:
        for index in range(first, first + count):
            updates.set_rates(1.0 / (1 + index))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_of(model, index)
            loss.backward()  # type: ignore[no-untyped-call]
            if not in_backward:
                updates.step()
            updates.zero_grad()

    first, updates = trained(optimizer, precision, **extra)
    go_on(first, updates, 0, 2)
    saved = {n: t.clone() for n, t in updates.tensors().items()}
    weights = {n: t.clone() for n, t in first.state_dict().items()}
    go_on(first, updates, 2, 2)
    second, others = trained(optimizer, precision, **extra)
    second.load_state_dict(weights)
    others.restore(saved)
    go_on(second, others, 2, 2)
    assert everything(first, updates) == everything(second, others)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t.pop("exp_avg.embed.weight"), "'exp_avg.embed.weight' is missing"),
        (lambda t: t.update({"exp_avg.gone": torch.zeros(1)}), "'exp_avg.gone' has no place"),
        (lambda t: t.update({"exp_avg.embed.weight": torch.zeros(3)}), r"float32 \[3\], not torch.float32 \[64, 64\]"),
        (lambda t: t.update({"exp_avg.embed.weight": t["exp_avg.embed.weight"].bfloat16()}), "is torch.bfloat16"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_changes(
    spoil: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    model, updates = trained()
    steps(model, updates, 0, 1)
    before = everything(model, updates)
    tensors = {n: torch.full_like(t, 7) for n, t in updates.tensors().items()}
    spoil(tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        updates.restore(tensors)
    assert "\n" not in str(caught.value)
    assert everything(model, updates) == before


# ---------------------------------------------------------------- in the backward pass
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("variant", ["gqa", "all", "all_new"])
def test_stepping_in_the_backward_pass_gives_the_same_bits(variant: str, tied: bool) -> None:
    results = []
    for in_backward in (False, True):
        model = tiny_model(**VARIANTS[variant], tie_embeddings=tied)
        train = TrainConfig(optimizer_in_backward=in_backward, grad_clip=None)
        updates = build_updates(model, train)
        assert updates.in_backward == in_backward
        for index in range(3):
            updates.set_rates(0.5)
            loss_of(model, index).backward()  # type: ignore[no-untyped-call]
            if in_backward:
                assert all(p.grad is None for p in model.parameters())
            else:
                updates.step()
                updates.zero_grad()
        results.append(everything(model, updates))
    assert results[0] == results[1]


@pytest.mark.parametrize("optimizer", ["muon", "adafactor"])
def test_other_rules_step_in_the_backward_pass_too(optimizer: str) -> None:
    (model, _), (twin, plain) = trained(optimizer, optimizer_in_backward=True, grad_clip=None), trained(optimizer)
    for index in range(2):
        loss_of(model, index).backward()  # type: ignore[no-untyped-call]
        loss_of(twin, index).backward()  # type: ignore[no-untyped-call]
        plain.step()
        plain.zero_grad()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-4)  # Muon's batch is another, and so may be the order of its sums


def test_a_gradient_that_is_not_finite_ends_the_updates_of_its_backward_pass() -> None:
    model, updates = trained(optimizer_in_backward=True, grad_clip=None)
    before = everything(model, updates)
    assert not updates.nonfinite
    (loss_of(model, 0) * float("nan")).backward()  # type: ignore[no-untyped-call]
    assert updates.nonfinite
    assert all(p.grad is None for p in model.parameters())
    assert everything(model, updates) == before
    loss_of(model, 0).backward()  # type: ignore[no-untyped-call]
    assert everything(model, updates) == before  # not until it is cleared
    updates.nonfinite = False
    loss_of(model, 0).backward()  # type: ignore[no-untyped-call]
    assert not updates.nonfinite
    assert everything(model, updates) != before


def test_only_what_came_before_a_bad_gradient_is_applied() -> None:
    model, updates = trained(optimizer_in_backward=True, grad_clip=None)
    before = bits(model.state_dict())
    model.blocks[0].mlp.up.weight.register_hook(lambda grad: grad / 0)  # type: ignore[union-attr, operator]
    loss_of(model, 0).backward()  # type: ignore[no-untyped-call]
    assert updates.nonfinite
    after = bits(model.state_dict())
    assert after["blocks.1.mlp.up.weight"] != before["blocks.1.mlp.up.weight"]  # later layers come first
    assert after["blocks.0.mlp.up.weight"] == before["blocks.0.mlp.up.weight"]
    assert after["embed.weight"] == before["embed.weight"]
    assert all(bool(p.isfinite().all()) for p in model.parameters())


# ---------------------------------------------------------------- on a GPU
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gpu_skips_and_steps_without_being_waited_for(optimizer: str, precision: str) -> None:
    model = tiny_model(**FEW_SHAPES).cuda()
    settings = TrainConfig.model_validate({"optimizer": optimizer, "weight_precision": precision})
    store_weights(model, settings.weight_precision)
    updates = build_updates(model, settings)

    def state() -> Bits:
        return bits({n: t.cpu() for n, t in {**model.state_dict(), **updates._state()}.items()})

    def step(value: float, skip: float) -> None:
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        flag = torch.full((), skip, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            updates.step(flag)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    step(0.1, 0.0)
    before = state()
    step(float("nan"), 1.0)
    assert state() == before
    step(0.1, 0.0)
    assert state() != before


@on_a_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("optimizer", RULES)
def test_a_gpu_steps_in_the_backward_pass_and_resumes(optimizer: str, precision: str) -> None:
    settings = TrainConfig.model_validate(
        {"optimizer": optimizer, "weight_precision": precision, "optimizer_in_backward": True, "grad_clip": None}
    )

    def fresh() -> tuple[GPT, Updates]:
        model = tiny_model(**FEW_SHAPES).cuda()
        store_weights(model, settings.weight_precision)
        return model, build_updates(model, settings)

    def backward(model: GPT, seed: int, factor: float = 1.0) -> None:
        tokens = random_tokens(seed=seed).cuda()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = model(tokens[:, :-1], tokens[:, 1:]).loss
        (loss * factor).backward()

    first, updates = fresh()
    backward(first, 0)
    before = {n: t.clone() for n, t in {**first.state_dict(), **updates._state()}.items()}
    backward(first, 1, float("nan"))
    assert updates.nonfinite
    after = {**first.state_dict(), **updates._state()}
    assert all(torch.equal(t, after[n]) for n, t in before.items())
    updates.nonfinite = False
    second, others = fresh()
    second.load_state_dict(first.state_dict())
    others.restore(updates.tensors())
    for model in (first, second):
        backward(model, 2)
    ends = [{n: t.clone() for n, t in m.state_dict().items()} for m in (first, second)]
    assert any(not torch.equal(ends[0][n], before[n]) for n in ends[0])
    for name, tensor in ends[0].items():  # sums of GPUs may differ in the last bits
        assert torch.allclose(tensor.float(), ends[1][name].float(), rtol=2e-2, atol=2e-2), name
