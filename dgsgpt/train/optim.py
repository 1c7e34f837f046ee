"""What changes the weights: an update rule for each group of parameters, and its state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from dgsgpt.config import TrainConfig
from dgsgpt.errors import CheckpointError
from dgsgpt.train.rounding import Rounder, Shadow
from dgsgpt.train.update_rules import (
    FRESH,
    SKIP_ON_DEVICE,
    Builder,
    UpdateGroup,
    rule_builder,
    state_parts,
    update_groups,
)

if TYPE_CHECKING:
    from dgsgpt.model import GPT

# What the state of an exact resume holds beside the optimizers': how many weights were rounded at random so far.
ROUNDED = "rounding.count"


class Unit(NamedTuple):
    """An optimizer and what it updates at once."""

    group: UpdateGroup
    optimizer: torch.optim.Optimizer
    parameters: dict[str, nn.Parameter]  # what the optimizer knows, by the name in the model
    shadow: Shadow | None  # whose parameter that is, where the model's own is stored in bfloat16


class Updates:
    """The update of a model's weights.

    Weights in float32 are updated all at once; those in bfloat16, and with `train.optimizer_in_backward` all, one
    after another. In the latter case this happens in the backward pass itself, and every gradient is let go when it
    has been applied; one that is not finite is not applied, and nothing after it until `nonfinite` is cleared.

    Raises:
        RunError: `train.optimizer` needs a package or a compiler that is not here.
    """

    def __init__(self, model: GPT, train: TrainConfig) -> None:
        self.groups = update_groups(model, train)
        self.in_backward = train.optimizer_in_backward
        self._parameters = dict(model.named_parameters())
        device = next(iter(self._parameters.values())).device
        self._rounder = Rounder(train.seed, device)
        self._finite = torch.ones((), device=device)  # 0 after a gradient that was not
        builder = rule_builder(train, device)
        self._units = [unit for group in self.groups for unit in self._assemble(group, builder)]
        if self.in_backward:
            for unit in self._units:
                (name,) = unit.parameters
                self._parameters[name].register_post_accumulate_grad_hook(self._in_backward(unit))

    def _assemble(self, group: UpdateGroup, builder: Builder) -> Iterator[Unit]:
        """The optimizers of a group: one for all that can be updated at once, and one for each other parameter."""
        own = {name: self._parameters[name] for name in group.parameters}
        narrow = [name for name, p in own.items() if p.dtype != torch.float32]
        together = {} if self.in_backward else {name: p for name, p in own.items() if name not in narrow}
        if together:
            yield _with_state(Unit(group, builder(group, list(together.values()), None), together, None))
        for name, p in own.items():
            if name in narrow:
                shadow = Shadow(p)
                optimizer = builder(group, [shadow.parameter], p.dtype)
                yield _with_state(Unit(group, optimizer, {name: shadow.parameter}, shadow))
            elif name not in together:
                yield _with_state(Unit(group, builder(group, [p], None), {name: p}, None))

    # ------------------------------------------------------------ stepping
    def set_rates(self, share: float) -> None:
        """Give every group `share` of its peak rate; the schedule has one share for all."""
        for unit in self._units:
            for values in unit.optimizer.param_groups:
                if isinstance(values["lr"], Tensor):  # torchao compiles a number in, and once for each
                    values["lr"].fill_(unit.group.lr * share)
                else:
                    values["lr"] = unit.group.lr * share

    def step(self, skip: Tensor | None = None) -> None:
        """Apply all gradients there are.

        Args:
            skip: [] float32; where it is 1, weights and states stay as they are, bit for bit. AdamW and Muon let a GPU
                decide this by itself, the others wait for it.
        """
        for unit in self._units:
            self._step(unit, skip)

    def _step(self, unit: Unit, skip: Tensor | None) -> None:
        if skip is not None and (skip.device.type == "cpu" or unit.group.rule not in SKIP_ON_DEVICE):
            if not float(skip):
                self._apply(unit, None)
        else:
            self._apply(unit, skip)

    def _apply(self, unit: Unit, skip: Tensor | None) -> None:
        """Step a unit, or have the device leave it as it is where `skip` is 1."""
        unit.optimizer.found_inf = skip  # type: ignore[attr-defined]  # torch's name for it, made for its GradScaler
        if unit.shadow is None:
            unit.optimizer.step()
        elif unit.shadow.stored.grad is not None:
            with unit.shadow.filled() as value:
                unit.optimizer.step()
                self._rounder.round_into(unit.shadow.stored, value)  # a skipped one is rounded to what it was

    def _in_backward(self, unit: Unit) -> Callable[[Tensor], None]:
        """What updates the one parameter of `unit` as soon as its gradient is complete, and lets that go."""

        def update(p: Tensor) -> None:
            assert p.grad is not None
            # The largest magnitude tells whether all are finite, without a tensor of the gradient's size.
            finite = torch.linalg.vector_norm(p.grad, float("inf")).isfinite()
            self._finite = torch.minimum(self._finite, finite.to(self._finite.dtype))
            if self._finite.device.type != "cpu":
                self._step(unit, 1.0 - self._finite)
            elif self._finite:
                self._step(unit, None)
            p.grad = None

        return update

    @property
    def nonfinite(self) -> bool:
        """Whether a gradient in a backward pass was not finite, since this was set to false; waits for a GPU."""
        return not bool(self._finite)

    @nonfinite.setter
    def nonfinite(self, value: bool) -> None:
        self._finite = torch.full_like(self._finite, float(not value))

    def zero_grad(self) -> None:
        """Let all gradients go."""
        for p in self._parameters.values():
            p.grad = None

    # ------------------------------------------------------------ state
    def _state(self) -> dict[str, Tensor]:
        """The optimizers' own tensors, not copies, by `kind.parameter.name`; quantised ones by their parts."""
        return {
            f"{kind}.{name}": tensor
            for unit in self._units
            for name, parameter in unit.parameters.items()
            for outer, value in unit.optimizer.state[parameter].items()
            for kind, tensor in state_parts(outer, value)
        }

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, as `{"exp_avg.blocks.0.attn.q.weight": …}`; later steps change these very tensors."""
        state = self._state()
        if any(unit.shadow for unit in self._units):
            state[ROUNDED] = torch.tensor(self._rounder.count)
        return state

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave.

        Raises:
            CheckpointError: a tensor is missing, unknown or of another shape or type; nothing is then changed.
        """
        expected = self.tensors()
        remedy = "it was saved under other train settings; put those back or start a new run"
        for name in sorted(expected.keys() ^ tensors.keys()):
            fault = "is missing" if name in expected else "has no place in this run"
            raise CheckpointError(f"optimizer state {name!r} {fault}: {remedy}")
        for name, own in expected.items():
            given = tensors[name]
            if own.shape != given.shape or own.dtype != given.dtype:
                raise CheckpointError(
                    f"optimizer state {name!r} is {given.dtype} {list(given.shape)}, not {own.dtype} "
                    f"{list(own.shape)}: {remedy}"
                )
        for name, own in self._state().items():
            own.copy_(tensors[name])
        if ROUNDED in expected:
            self._rounder.count = int(tensors[ROUNDED])


def build_updates(model: GPT, train: TrainConfig) -> Updates:
    """The updates that `train` describes, of `model` on its device with its weights stored as they shall stay.

    Raises:
        RunError: `train.optimizer` needs a package or a compiler that is not here.
    """
    return Updates(model, train)


def _with_state(unit: Unit) -> Unit:
    """`unit` with the state its optimizer would make at its first step.

    Made now, it is whole at any time: a checkpoint can be compared with it by names and shapes, a first step can be
    skipped, and memory that does not suffice is missed at the start.
    """
    for parameter in unit.parameters.values():
        if unit.shadow is None:
            unit.optimizer.state[parameter] = FRESH[unit.group.rule](unit.optimizer, parameter)
        else:
            with unit.shadow.filled() as value:
                unit.optimizer.state[parameter] = FRESH[unit.group.rule](unit.optimizer, value)
    return unit
