"""A model made to read a text up to a point of interest, and the text's tokens as they are named in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError
from dgsgpt.evaluation.judging import judging
from dgsgpt.evaluation.perplexity import check_vocabulary
from dgsgpt.format import printable
from dgsgpt.generation.context import context_lead

if TYPE_CHECKING:
    from dgsgpt.model import GPT

MOST_READ = 2048  # tokens of context that a look reads: attention alone costs their square
_LONGEST_LABEL = 14


class _ReachedError(Exception):
    """The forward pass has come to the module; not an error, but the only way out of the middle of one."""

    def __init__(self, inputs: tuple[Any, ...]) -> None:
        super().__init__()
        self.inputs = inputs


def reach(model: GPT, tokens: Tensor, module: nn.Module) -> tuple[Any, ...]:
    """What `module` is given when `model` reads `tokens` [B, T]; neither it nor what follows it is computed."""

    def stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _ReachedError(inputs)

    handle = module.register_forward_pre_hook(stop)
    try:
        with judging(model):
            model(tokens)
    except _ReachedError as reached:
        return reached.inputs
    finally:
        handle.remove()
    raise AssertionError("the module is no part of the model's forward pass")


@dataclass(frozen=True)
class Reading:
    """The tokens a model reads in one pass: the last that fit the context, after what it expects before every text.

    `cut` counts the earlier tokens that did not fit.
    """

    ids: tuple[int, ...]
    cut: int

    def tensor(self, model: GPT) -> Tensor:
        """[1, T] where the model is."""
        return torch.tensor([self.ids], dtype=torch.long, device=next(model.parameters()).device)


def read_last(model: GPT, tokenizer: Tokenizer, ids: Sequence[int]) -> Reading:
    """The last of `ids` that fit the model's context, at most `MOST_READ`.

    Raises:
        DataError: there are none and nothing is expected before a text, or the model has no rows for one of them.
    """
    size = model.config.block_size
    lead = context_lead(tokenizer, size)
    if not ids and not lead:
        raise DataError("the text is empty; give at least one character")
    kept = tuple(ids[-max(1, min(size, MOST_READ) - len(lead)) :])
    whole = (*lead, *kept)
    check_vocabulary(model, tokenizer, torch.tensor([*whole, *whole]).numpy())  # twice: it refuses a single token
    return Reading(whole, len(ids) - len(kept))


def label_of(tokenizer: Tokenizer, token: int) -> str:
    """A token as a short line: without the spaces before a word, white space by a mark, a special one by its name."""
    raw = tokenizer.token_bytes(token)
    if not raw:
        return next((name for name, own in tokenizer.specials.items() if own == token), f"token {token}")
    text = raw.decode("utf-8", "backslashreplace")
    text = text.strip(" ") or "·" * len(text)
    text = printable(text.replace("\n", "⏎").replace("\t", "⇥"))
    return text if len(text) <= _LONGEST_LABEL else text[: _LONGEST_LABEL - 1] + "…"


__all__ = ["MOST_READ", "Reading", "label_of", "reach", "read_last"]
