"""What every reader of another program's model gives: a config, weights by our names, a tokenizer, and its story."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dgsgpt.config import ModelConfig

if TYPE_CHECKING:
    from torch import Tensor

    from dgsgpt.data.tokenizer import Tokenizer

Progress = Callable[[str, float], None]  # what is being done, and which share of it is


@dataclass(frozen=True)
class Incoming:
    """A model as dgsgpt will keep it.

    `tensors` has exactly the names and shapes of `GPT(model).state_dict()`, in float32; `model.vocab_size` is set and
    at least the tokenizer's size. `train` holds what is known of its training, as nested settings of `train:`.
    `facts` go into the checkpoint's metadata: `sha256`, and what else is worth telling; all are numbers or plain text.
    `warnings` are sentences for the person who imports.
    """

    family: str
    model: ModelConfig
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    train: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    step: int = 0
