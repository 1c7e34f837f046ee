"""A trained model over longer texts than it was trained on."""

from __future__ import annotations

import torch
from pydantic import ValidationError

from dgsgpt.config import ModelConfig
from dgsgpt.errors import ConfigError
from dgsgpt.model import GPT
from dgsgpt.rules import explain


def extended(model: GPT, context: int, kind: str | None = None) -> GPT:
    """`model` made ready for windows of `context` tokens, without training; both share their weights.

    With a `kind` (linear, yarn, llama3) rotary positions are stretched by the ratio of `context` to the trained
    `block_size`; what each kind does, and from which paper, stands in `dgsgpt.model.rope`. Without one the model
    itself is given back: rotary positions then go on to angles that training never showed.

    Raises:
        ConfigError: the model cannot read that far, or has no rotary positions that could be stretched to `context`.
    """
    _check(model.config, context, kind)
    if kind is None:
        return model
    trained = model.config.block_size
    values = model.config.model_dump()
    values["block_size"] = context
    values["rope"]["scaling"] = {"kind": kind, "factor": context / trained, "original_block_size": trained}
    try:
        config = ModelConfig.model_validate(values)
    except ValidationError as e:
        raise explain(e, ModelConfig, f"context={context}") from None
    with torch.device("meta"):  # weights are neither allocated nor drawn
        longer = GPT(config)
    longer.load_state_dict(model.state_dict(), strict=True, assign=True)
    return longer.train(model.training)


def _check(config: ModelConfig, context: int, kind: str | None) -> None:
    trained = config.block_size
    if context < 1:
        raise ConfigError(f"context={context} must be at least 1 token; leave it out for the trained {trained}")
    if config.rope is None:
        if kind is not None:
            raise ConfigError(f"rope scaling {kind} needs rotary positions, but model.rope=null; leave it out")
        if config.positions == "learned" and context > trained:
            raise ConfigError(
                f"context={context} must not exceed the model's {trained} learned positions; lower it to {trained}, "
                "or train with model.rope, which has no last position"
            )
    elif kind is not None:
        if config.rope.scaling is not None:
            raise ConfigError(
                f"rope scaling {kind} must not replace the {config.rope.scaling.kind} scaling that the model was "
                "trained with; leave it out"
            )
        if context <= trained:
            raise ConfigError(
                f"rope scaling {kind} needs a context beyond the trained {trained} tokens, not {context}; "
                f"raise the context, e.g. to {2 * trained}, or leave the scaling out"
            )


__all__ = ["extended"]
