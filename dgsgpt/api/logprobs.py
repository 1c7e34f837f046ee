"""What each token cost, and what the model would rather have said there.

Figures are the model's own: log-probabilities at temperature 1, before any filter.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.generation.engine import Context, context_lead

if TYPE_CHECKING:
    from dgsgpt.model import GPT

# A prompt is judged in parts, which keeps its logits [1, T, V] small.
_PART_TOKENS = 64


@dataclass(frozen=True)
class Scored:
    """A token of a text: how it is written, where it begins in the text, its log-probability, the likeliest ones.

    `top` holds the token itself too. Both figures are None for a token that nothing comes before.
    """

    token: str
    offset: int
    logprob: float | None
    top: dict[str, float] | None


def token_name(tokenizer: Tokenizer, token: int) -> str:
    r"""A token as text; one that is no whole character as `bytes:\xe2\x80`, a special one by its name."""
    data = tokenizer.token_bytes(token)
    if not data:
        return next((name for name, own in tokenizer.specials.items() if own == token), "")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


class TokenLog:
    """The tokens of one text with their figures, given out once the text they begin in has been."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._kept: list[Scored] = []

    def add(self, token: int, logprob: float | None, likeliest: Sequence[tuple[int, float]]) -> None:
        """A token and the likeliest ones (id, log-probability) in its place."""
        name = token_name(self._tokenizer, token)
        top: dict[str, float] | None = None
        if logprob is not None:
            top = {name: logprob}
            for other, value in likeliest:
                if other != token:  # two ids may be written alike: the likelier one is told
                    top.setdefault(token_name(self._tokenizer, other), value)
        self._kept.append(Scored(name, self._offset, logprob, top))
        self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def give(self, characters: int) -> list[Scored]:
        """Tokens that begin within the first `characters` of the text and have not been given yet."""
        ready = [scored for scored in self._kept if scored.offset < characters]
        del self._kept[: len(ready)]
        return ready


class Shadow:
    """Reads along with a generation, which costs as much again, and tells the likeliest tokens in the place of each."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, ids: list[int], count: int) -> None:
        self._context = Context(model, context_lead(tokenizer, model.config.block_size))
        self._vocab_size = tokenizer.vocab_size
        self._unread = ids
        self._count = count

    def likeliest(self, token: int) -> list[tuple[int, float]]:
        """The likeliest tokens in the place of the next one, which is `token`."""
        logits = self._context.read(self._unread)[: self._vocab_size]
        self._unread = [token]
        return _top(torch.log_softmax(logits.cpu().double(), 0), self._count)


@torch.inference_mode()
def judge_prompt(
    model: GPT, tokenizer: Tokenizer, ids: list[int], count: int
) -> list[tuple[float, list[tuple[int, float]]]]:
    """For `ids[1:]`, at most a context of them: the log-probability and the `count` likeliest in its place."""
    cache = model.make_cache(1, model.config.block_size)
    device = next(model.parameters()).device
    found: list[tuple[float, list[tuple[int, float]]]] = []
    for first in range(0, len(ids) - 1, _PART_TOKENS):
        part = ids[first : min(first + _PART_TOKENS, len(ids) - 1)]
        logits = model(torch.tensor([part], device=device), cache=cache).logits
        assert logits is not None, "without targets there are always logits"
        logs = torch.log_softmax(logits[0, :, : tokenizer.vocab_size].cpu().double(), -1)
        for row, token in zip(logs, ids[first + 1 :], strict=False):
            found.append((float(row[token]), _top(row, count)))
    return found


def _top(logs: Tensor, count: int) -> list[tuple[int, float]]:
    values, ids = torch.topk(logs, min(count, len(logs)))
    return list(zip(ids.tolist(), values.tolist(), strict=True))


__all__ = ["Scored", "Shadow", "TokenLog", "judge_prompt", "token_name"]
