from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dgsgpt.config import RunConfig
from dgsgpt.data.loader import IGNORED, Batch, Batches
from dgsgpt.data.prepare import prepare
from dgsgpt.errors import RunError
from dgsgpt.model import GPT
from dgsgpt.train.optim import build_updates
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.stepper import Stepper, pick_device

Make = Callable[..., RunConfig]


def stepper(config: RunConfig, decides_here: bool | None = None) -> Stepper:
    torch.manual_seed(0)
    model = GPT(config.model)
    dataset = prepare(config.data, config.model.block_size)
    batches = Batches(
        dataset, "train", block_size=config.model.block_size, batch_size=config.train.micro_batch_size, seed=1
    )
    updates = build_updates(model, config.train)
    return Stepper(model, updates, batches, config.train, torch.device("cpu"), decides_here)


def weights(s: Stepper) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in s.model.parameters()])


def test_accumulated_micro_batches_equal_one_large_batch(make_config: Make) -> None:
    large = stepper(make_config(**{"train.micro_batch_size": 8}))
    small = stepper(make_config(**{"train.micro_batch_size": 2, "train.grad_accum_steps": 4}))
    for index in range(3):
        a, b = large.step(index).read(), small.step(index).read()
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    assert torch.allclose(weights(large), weights(small), atol=1e-4)


def test_the_gradient_is_clipped_to_its_limit(make_config: Make) -> None:
    s = stepper(make_config(**{"train.grad_clip": 1e-3}))
    s._accumulate(0)
    assert s._clip() > 1e-3
    norm = torch.sqrt(sum((p.grad**2).sum() for p in s.model.parameters() if p.grad is not None))
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_micro_batches_of_unequal_valid_tokens_equal_one_large_batch(make_config: Make) -> None:
    large = stepper(make_config(**{"train.micro_batch_size": 8}))
    small = stepper(make_config(**{"train.micro_batch_size": 2, "train.grad_accum_steps": 4}))
    all_rows = large.batches.get(0)
    targets = all_rows.targets.clone()
    targets[0], targets[1, 5:], targets[2:4] = IGNORED, IGNORED, IGNORED  # the second micro-batch has none at all
    rows = {0: slice(0, 2), 1: slice(2, 4), 2: slice(4, 6), 3: slice(6, 8)}
    large.batches = Rows({0: Batch(all_rows.inputs, targets)})  # type: ignore[assignment]
    small.batches = Rows({i: Batch(all_rows.inputs[r], targets[r]) for i, r in rows.items()})  # type: ignore[assignment]
    a, b = large.step(0).read(), small.step(0).read()
    assert a.loss == pytest.approx(b.loss, rel=1e-5)
    assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    assert torch.allclose(weights(large), weights(small), atol=1e-5)


class Rows:
    """Batches that are given."""

    def __init__(self, batches: dict[int, Batch]) -> None:
        self._batches = batches

    def get(self, step: int) -> Batch:
        return self._batches[step]


def everything(s: Stepper) -> dict[str, torch.Tensor]:
    """Weights, buffers and optimizer state, copied."""
    return {k: v.clone() for k, v in {**s.model.state_dict(), **s.updates.tensors()}.items()}


@pytest.mark.parametrize("decides_here", [True, False], ids=["host", "device"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(
    make_config: Make, where: str, optimizer: str, decides_here: bool
) -> None:
    moe = {"n_expert": 4, "balance": "bias"}
    s = stepper(make_config(**{"model.moe": moe, "train.optimizer": optimizer}), decides_here)
    for index in range(2):
        s.step(index)
    assert s.skipped() == 0
    weight = s.model.embed.weight
    if where == "loss":
        handle = s.model.norm.register_forward_hook(lambda module, inputs, out: out * float("nan"))
    else:
        handle = weight.register_hook(lambda gradient: gradient * float("inf"))
    before = everything(s)
    result = s.step(2).read()
    handle.remove()
    assert not result.finite
    assert s.skipped() == 1
    assert s.skipped() == 0
    after = everything(s)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert s.step(3).read().finite
    assert not torch.equal(weight, before["embed.weight"])


def test_deciding_on_the_device_trains_the_same(make_config: Make) -> None:
    config = make_config(**{"train.grad_clip": 0.5, "train.optimizer": "muon"})
    here, there = stepper(config, True), stepper(config, False)
    for index in range(4):
        assert here.step(index).read() == there.step(index).read()
    torch.testing.assert_close(weights(here), weights(there), rtol=1e-6, atol=1e-7)


def test_float16_scales_the_loss_and_learns_from_overflows(make_config: Make) -> None:
    half = stepper(make_config(**{"train.precision": "fp16"}))
    plain = stepper(make_config(**{"train.precision": "fp32"}))
    assert half.loss_scale is not None
    half.loss_scale.scale = 2.0**40  # far too large
    before = everything(half)
    assert not half.step(0).read().finite
    assert half.loss_scale.scale == 2.0**39
    assert all(torch.equal(v, before[k]) for k, v in everything(half).items())
    half.loss_scale.scale = 2.0**10
    for index in range(3):
        a, b = half.step(index).read(), plain.step(index).read()
        assert a.finite
        assert a.loss == pytest.approx(b.loss, rel=5e-3)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=5e-2)


def test_an_update_in_the_backward_pass_trains_the_same(make_config: Make) -> None:
    settings = {"train.grad_clip": None}
    usual = stepper(make_config(**settings))
    early = stepper(make_config(**settings, **{"train.optimizer_in_backward": True}))
    for index in range(3):
        a, b = usual.step(index).read(), early.step(index).read()
        assert a.loss == b.loss
        assert b.grad_norm is None
    assert torch.equal(weights(usual), weights(early))


def test_a_lower_rate_scale_lowers_every_rate(make_config: Make) -> None:
    s = stepper(make_config(**{"train.optimizer": "muon"}))
    s.rate_scale = 0.5
    assert s.step(10).lr == pytest.approx(0.5 * stepper(make_config()).step(10).lr)


def test_a_restored_optimizer_goes_on_as_the_first_would(make_config: Make) -> None:
    first = stepper(make_config())
    for index in range(3):
        first.step(index)
    second = stepper(make_config())
    second.model.load_state_dict(first.model.state_dict())
    second.updates.restore(first.updates.tensors())
    for index in range(3, 6):
        assert first.step(index).read() == second.step(index).read()
    assert torch.equal(weights(first), weights(second))


def test_a_missing_gpu_is_said() -> None:
    if torch.cuda.is_available():
        assert pick_device("cuda").type == "cuda"
    else:
        with pytest.raises(RunError, match="torch finds no GPU"):
            pick_device("cuda")
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_expert_biases_move_once_a_step_whatever_the_accumulation_and_recomputation(
    make_config: Make, mode: str
) -> None:
    moe = {"model.moe": {"n_expert": 4, "balance": "bias", "bias_update_rate": 0.01}}
    large = stepper(make_config(**moe, **{"train.micro_batch_size": 8}))
    small = stepper(make_config(**moe, **{"train.micro_batch_size": 2, "train.grad_accum_steps": 4}))
    apply_gradient_checkpointing(small.model, mode)  # type: ignore[arg-type]
    for index in range(3):
        a, b = large.step(index).read(), small.step(index).read()
        assert a.extra == pytest.approx(b.extra, abs=0.02)
    biases = [[v for n, v in s.model.named_buffers() if n.endswith("selection.bias")] for s in (large, small)]
    assert len(biases[0]) == large.model.config.n_layer
    for x, y in zip(*biases, strict=True):
        assert torch.allclose(x, y, atol=1e-6)
        # Three steps of 0.01 up or down, each.
        assert torch.allclose((x / 0.01).round() * 0.01, x, atol=1e-6)
        assert 0 < x.abs().max() <= 0.03 + 1e-6
