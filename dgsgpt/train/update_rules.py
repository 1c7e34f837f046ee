"""Update rules: which moves which parameters, how each is built, and the state it begins with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgsgpt.config import TrainConfig
from dgsgpt.errors import RunError
from dgsgpt.train.muon import Muon
from dgsgpt.train.parallel import compiler_problem
from dgsgpt.train.weights import is_router, is_vector

if TYPE_CHECKING:
    from dgsgpt.model import GPT

ADAM_EPS = 1e-8
# Rules that a GPU can skip by itself, by a number in its memory; the others need it here.
SKIP_ON_DEVICE = frozenset({"adamw", "muon"})


@dataclass(frozen=True)
class UpdateGroup:
    """Parameters that share a rule, a rate and a weight decay."""

    name: str
    rule: str  # adamw, muon, adafactor or adamw8bit
    lr: float  # peak rate
    weight_decay: float
    parameters: tuple[str, ...]
    numbers: int  # in all of them


def update_groups(model: GPT, train: TrainConfig) -> tuple[UpdateGroup, ...]:
    """Every parameter of `model` in one group.

    Matrices and expert stacks decay; vectors, that is norms, biases and shares, do not, as in GPT-2 and Llama
    training. Muon is for the matrices of the blocks; embeddings, the output layer and routers, whose rows stand for
    single tokens and experts, are AdamW's (Jordan et al. 2024).
    """
    blocks: list[tuple[str, int]] = []
    matrices: list[tuple[str, int]] = []
    vectors: list[tuple[str, int]] = []
    for name, p in model.named_parameters():
        inner = train.optimizer == "muon" and name.startswith("blocks.") and not is_router(name)
        (vectors if is_vector(name, p) else blocks if inner else matrices).append((name, p.numel()))
    rest = "adamw" if train.optimizer == "muon" else train.optimizer
    decay = train.weight_decay
    kinds = (
        ("matrices", "muon", train.muon_lr, decay, blocks),
        ("embeddings" if train.optimizer == "muon" else "matrices", rest, train.lr, decay, matrices),
        ("vectors", rest, train.lr, 0.0, vectors),
    )
    return tuple(
        UpdateGroup(name, rule, lr, decay, tuple(n for n, _ in members), sum(numbers for _, numbers in members))
        for name, rule, lr, decay, members in kinds
        if members
    )


# From a group, its parameters (or the shadow of one) and the type the weights are stored in where that is narrow.
Builder = Callable[[UpdateGroup, list[nn.Parameter], torch.dtype | None], torch.optim.Optimizer]


def rule_builder(train: TrainConfig, device: torch.device) -> Builder:
    """What builds the optimizer of a group."""
    adam: dict[str, Any] = {"betas": (train.beta1, train.beta2), "eps": ADAM_EPS}
    low_bit = _low_bit_adam(device) if train.optimizer == "adamw8bit" else None

    def build(group: UpdateGroup, parameters: list[nn.Parameter], stored: torch.dtype | None) -> torch.optim.Optimizer:
        common: dict[str, Any] = {"lr": group.lr, "weight_decay": group.weight_decay}
        if group.rule == "muon":
            return Muon(parameters, **common, momentum=train.muon_momentum, momentum_dtype=stored)
        if group.rule == "adafactor":
            return torch.optim.Adafactor(parameters, **common)
        if low_bit is not None:
            return low_bit(parameters, **common, **adam)
        return torch.optim.AdamW(parameters, **common, **adam, fused=True)  # one pass over memory

    return build


def _low_bit_adam(device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """AdamW with states of 8 bits in blocks of 256 (Dettmers et al. 2022), from torchao.

    Raises:
        RunError: torchao is not installed, or its step, which is compiled, has no compiler here.
    """
    try:
        from torchao.optim import AdamW8bit
    except ImportError as e:
        raise RunError(
            'train.optimizer=adamw8bit needs torchao, which is not here; pip install "dgsgpt[lowbit]", or set '
            "train.optimizer=adafactor"
        ) from e
    problem = compiler_problem(device)
    if problem is not None:
        raise RunError(
            f"train.optimizer=adamw8bit compiles its step, but {problem}; install a compiler, or set "
            "train.optimizer=adafactor"
        )
    build: Callable[..., torch.optim.Optimizer] = AdamW8bit
    return build


def _fresh_adamw(optimizer: Any, p: Tensor) -> dict[str, Tensor]:
    step = torch.zeros((), device=p.device)
    return {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}


def _fresh_adafactor(optimizer: Any, p: Tensor) -> dict[str, Tensor]:
    step = torch.zeros(())
    if p.ndim < 2:
        return {"step": step, "variance": torch.zeros_like(p)}
    rows, columns = p.new_zeros(*p.shape[:-1], 1), p.new_zeros(*p.shape[:-2], 1, p.size(-1))
    return {"step": step, "row_var": rows, "col_var": columns}


def _fresh_adamw8bit(optimizer: Any, p: Tensor) -> dict[str, Tensor]:
    moments = {"exp_avg": optimizer._new_buffer(p, True), "exp_avg_sq": optimizer._new_buffer(p, False)}
    return {"step": torch.zeros(()), **moments}


def _fresh_muon(optimizer: Any, p: Tensor) -> dict[str, Tensor]:
    state: dict[str, Tensor] = optimizer.fresh_state(p)
    return state


FRESH = {"adamw": _fresh_adamw, "adafactor": _fresh_adafactor, "adamw8bit": _fresh_adamw8bit, "muon": _fresh_muon}


def state_parts(kind: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A state tensor, or those that a quantised one consists of, each with its kind."""
    if hasattr(value, "__tensor_flatten__"):
        for part in value.__tensor_flatten__()[0]:
            yield f"{kind}_{part}", getattr(value, part)
    else:
        yield kind, value
