"""What the attention heads of a layer see and share, from the config alone: no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dgsgpt import format as fmt
from dgsgpt.config import ModelConfig, layer_windows
from dgsgpt.errors import DgsgptError


@dataclass(frozen=True)
class Head:
    """A query head: its number in the layer, the key/value head it reads, the tokens it sees (None is all)."""

    number: int
    group: int
    window: int | None

    @property
    def reach(self) -> str:
        """`local 256` or `global`."""
        return "global" if self.window is None else f"local {fmt.number(self.window)}"


def heads_of(config: ModelConfig, layer: int) -> list[Head]:
    """The heads of a layer, counted from 0 as layers are.

    Raises:
        DgsgptError: there is no such layer.
    """
    check_layer(config, layer)
    windows = layer_windows(config)[layer]
    each, sharing = config.n_head // len(windows), config.n_head // config.n_kv_head
    return [Head(i, i // sharing, windows[i // each]) for i in range(config.n_head)]


def layer_name(config: ModelConfig, layer: int) -> str:
    """What a layer's heads see: `local 256`, `global`, or `local 256 and global` for half of them each."""
    return " and ".join(dict.fromkeys(head.reach for head in heads_of(config, layer)))


def head_name(head: Head, config: ModelConfig) -> str:
    """Number, group where heads share keys and values, and in a layer of two kinds what it sees."""
    name = f"Head {head.number}"
    return name if config.n_kv_head == config.n_head else f"{name}, group {head.group}"


def check_layer(config: ModelConfig, layer: int) -> None:
    """Refuse a number that is none of a layer.

    Raises:
        DgsgptError: it is not.
    """
    if not 0 <= layer < config.n_layer:
        raise DgsgptError(f"layer {layer} must be 0 to {config.n_layer - 1}: the model has {config.n_layer} layers")


__all__ = ["Head", "check_layer", "head_name", "heads_of", "layer_name"]
