from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from dgsgpt.config import RunConfig
from dgsgpt.data.loader import Batches
from dgsgpt.data.prepare import prepare
from dgsgpt.errors import RunError
from dgsgpt.model import GPT
from dgsgpt.train.optim import build_optimizer, optimizer_tensors, parameter_groups, restore_optimizer
from dgsgpt.train.parallel import apply_gradient_checkpointing
from dgsgpt.train.stepper import Stepper, pick_device

Make = Callable[..., RunConfig]


def stepper(config: RunConfig) -> Stepper:
    torch.manual_seed(0)
    model = GPT(config.model)
    dataset = prepare(config.data, config.model.block_size)
    batches = Batches(
        dataset, "train", block_size=config.model.block_size, batch_size=config.train.micro_batch_size, seed=1
    )
    return Stepper(model, build_optimizer(model, config.train), batches, config.train, torch.device("cpu"))


def weights(s: Stepper) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in s.model.parameters()])


def test_accumulated_micro_batches_equal_one_large_batch(make_config: Make) -> None:
    large = stepper(make_config(**{"train.micro_batch_size": 8}))
    small = stepper(make_config(**{"train.micro_batch_size": 2, "train.grad_accum_steps": 4}))
    for index in range(3):
        a, b = large.step(index), small.step(index)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    assert torch.allclose(weights(large), weights(small), atol=1e-4)


def test_the_gradient_is_clipped_to_its_limit(make_config: Make) -> None:
    s = stepper(make_config(**{"train.grad_clip": 1e-3}))
    s._accumulate(0)
    assert s._clip() > 1e-3
    norm = torch.sqrt(sum((p.grad**2).sum() for p in s.model.parameters() if p.grad is not None))
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(make_config: Make) -> None:
    s = stepper(make_config())
    with torch.no_grad():
        next(s.model.parameters()).fill_(float("nan"))
    others = [p.clone() for p in list(s.model.parameters())[1:]]
    with pytest.raises(RunError, match=r"not finite at step 8.*lower train\.lr"):
        s.step(7)
    assert all(torch.equal(a, b) for a, b in zip(others, list(s.model.parameters())[1:], strict=True))


def test_norms_and_biases_do_not_decay(make_config: Make) -> None:
    model = GPT(make_config(**{"model.bias": True, "model.norm": "layernorm"}).model)
    decayed, rest = parameter_groups(model, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert rest["weight_decay"] == 0.0
    assert {names[id(p)] for p in rest["params"]} == {n for n in names.values() if n.endswith("bias") or "norm" in n}
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


def test_a_restored_optimizer_goes_on_as_the_first_would(make_config: Make) -> None:
    first = stepper(make_config())
    for index in range(3):
        first.step(index)
    second = stepper(make_config())
    second.model.load_state_dict(first.model.state_dict())
    restore_optimizer(second.model, second.optimizer, optimizer_tensors(first.model, first.optimizer))
    for index in range(3, 6):
        assert first.step(index) == second.step(index)
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
        a, b = large.step(index), small.step(index)
        assert a.extra == pytest.approx(b.extra, abs=0.02)
    biases = [[v for n, v in s.model.named_buffers() if n.endswith("selection.bias")] for s in (large, small)]
    assert len(biases[0]) == large.model.config.n_layer
    for x, y in zip(*biases, strict=True):
        assert torch.allclose(x, y, atol=1e-6)
        # Three steps of 0.01 up or down, each.
        assert torch.allclose((x / 0.01).round() * 0.01, x, atol=1e-6)
        assert 0 < x.abs().max() <= 0.03 + 1e-6
