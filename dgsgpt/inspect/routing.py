"""Which experts each token of a text passed, and with what weight: the choices the model itself makes in use.

In use no token is dropped, whatever `moe.capacity_factor` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from dgsgpt.config import layer_is_moe
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.inspect.reading import label_of, reach, read_last
from dgsgpt.model.moe import MoE

if TYPE_CHECKING:
    from dgsgpt.model import GPT

MOST_SHOWN = 128
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerRouting:
    """The choices of one layer for T tokens, the heaviest expert first."""

    layer: int
    n_expert: int
    experts: Integers  # [T, K]
    weights: Floats  # [T, K] what each expert's output was multiplied by

    def grid(self) -> Floats:
        """Weights [E, T], 0 where an expert was not chosen."""
        found = np.zeros((self.n_expert, len(self.experts)), np.float32)
        np.put_along_axis(found, self.experts.T, self.weights.T, axis=0)
        return found

    def load(self) -> Floats:
        """Share of all choices that fell on each expert, [E]."""
        counts = np.bincount(self.experts.ravel(), minlength=self.n_expert)
        return (counts / max(1, counts.sum())).astype(np.float32)

    def of_last(self, tokens: int) -> LayerRouting:
        """The same of the last tokens only."""
        return LayerRouting(self.layer, self.n_expert, self.experts[-tokens:], self.weights[-tokens:])


def routing(model: GPT, tokens: Tensor) -> list[LayerRouting]:
    """The experts and weights of each token of `tokens` [T] in each MoE layer; empty for a model without experts."""
    layers = [i for i, sparse in enumerate(layer_is_moe(model.config)) if sparse]
    if not layers:
        return []
    experts = [_experts_of(model.blocks[layer]) for layer in layers]
    chosen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor], choice: tuple[Tensor, Tensor]) -> None:
        chosen.append(choice)

    handles = [moe.selection.register_forward_hook(keep) for moe in experts]
    try:
        reach(model, tokens[None], experts[-1].experts)
    finally:
        for handle in handles:
            handle.remove()
    return [
        _ordered(layer, moe, scores, which)
        for layer, moe, (scores, which) in zip(layers, experts, chosen, strict=True)
    ]  # fmt: skip


def _experts_of(block: nn.Module) -> MoE:
    return next(module for module in block.modules() if isinstance(module, MoE))


def _ordered(layer: int, moe: MoE, scores: Tensor, which: Tensor) -> LayerRouting:
    weights, order = moe.weigh(scores).float().sort(dim=-1, descending=True, stable=True)
    return LayerRouting(layer, moe.n_expert, which.gather(-1, order).cpu().numpy(), weights.cpu().numpy())


# ---------------------------------------------------------------- a look at the end of a text
@dataclass(frozen=True)
class RoutingLook:
    """The routing of the last N tokens of a text, layer by layer, and what every token passes beside the chosen.

    `first` is the position of the first of the shown among the `read` tokens; `cut` ones before these did not fit.
    """

    labels: tuple[str, ...]
    layers: tuple[LayerRouting, ...]
    per_token: int
    shared: str
    first: int
    read: int
    cut: int

    def only(self, layer: int) -> RoutingLook:
        """The same of one layer.

        Raises:
            DgsgptError: it has no experts.
        """
        kept = tuple(one for one in self.layers if one.layer == layer)
        if not kept:
            having = ", ".join(str(one.layer) for one in self.layers)
            raise DgsgptError(f"layer {layer} has no experts; layers with experts: {having or 'none'}")
        return replace(self, layers=kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        layers = [
            {"layer": one.layer, "n_expert": one.n_expert, "load": one.load().tolist(),
             "experts": one.experts.tolist(), "weights": one.weights.tolist()}
            for one in self.layers
        ]  # fmt: skip
        return {
            "tokens": list(self.labels), "first": self.first, "read": self.read, "cut": self.cut,
            "n_expert_per_token": self.per_token, "shared": self.shared, "layers": layers,
        }  # fmt: skip


def look_at_routing(model: GPT, tokenizer: Tokenizer, ids: Sequence[int], last: int = MOST_SHOWN) -> RoutingLook:
    """The routing of the `last` tokens of a text (at most `MOST_SHOWN`), all that fits the context being read.

    Raises:
        DgsgptError: the text is empty or not the model's.
    """
    reading = read_last(model, tokenizer, ids)
    shown = min(len(reading.ids), max(1, min(last, MOST_SHOWN)))
    first = len(reading.ids) - shown
    found = routing(model, reading.tensor(model)[0])
    moe = model.config.moe
    return RoutingLook(
        labels=tuple(label_of(tokenizer, token) for token in reading.ids[first:]),
        layers=tuple(layer.of_last(shown) for layer in found),
        per_token=moe.n_expert_per_token if moe else 0,
        shared=shared_of(model),
        first=first,
        read=len(reading.ids),
        cut=reading.cut,
    )


def shared_of(model: GPT) -> str:
    """What every token passes in an MoE layer beside its own experts, in a few words; empty for nothing."""
    moe = model.config.moe
    if moe is None:
        return ""
    several = moe.n_shared_expert > 1
    parts = [f"{moe.n_shared_expert} shared expert{'s' * several}"] if moe.n_shared_expert else []
    parts += ["a dense network"] if moe.dense_residual or moe.after_dense else []
    return " and ".join(parts)


__all__ = ["MOST_SHOWN", "LayerRouting", "RoutingLook", "look_at_routing", "routing", "shared_of"]
