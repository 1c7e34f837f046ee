"""Where each head of a layer looks: attention probabilities from the queries and keys that the model itself makes.

The model reads the text; at the layer, what its attention functions are given is kept. So whatever shapes queries and
keys (rotary positions, norms, groups, biases) is in the maps without being written a second time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.inspect.heads import Head, check_layer, heads_of, layer_name
from dgsgpt.inspect.reading import label_of, reach, read_last
from dgsgpt.model.attention import Attend, Attention

if TYPE_CHECKING:
    from dgsgpt.model import GPT

MOST_SHOWN = 128
Floats = npt.NDArray[np.float32]


def attention_maps(model: GPT, tokens: Tensor, layer: int, last: int | None = None) -> Tensor:
    """Probabilities [H, R, T], float32, with which the last R queries of `tokens` [T] look at all T of them.

    R is `last`, by default T. A row sums to 1; what a query does not see, being later or outside its window, is 0.
    Memory: H * R * T numbers, besides what reading up to the layer takes.

    Raises:
        DgsgptError: there is no such layer.
        ValueError: more tokens than a model with learned positions has.
    """
    check_layer(model.config, layer)
    attention = model.blocks[layer].attn
    assert isinstance(attention, Attention)
    with _recorded(attention) as parts:
        reach(model, tokens[None], attention.out)
    rows = min(last or len(tokens), len(tokens))
    maps = [_probabilities(q, k, window, rows) for (q, k), window in zip(parts, attention.windows, strict=True)]
    return torch.cat(maps)


@contextmanager
def _recorded(attention: Attention) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Queries [1, h, T, D] and keys [1, g, T, D] of each of a layer's windows, as they are attended with."""
    kept: list[tuple[Tensor, Tensor]] = []

    def recording(attend: Attend) -> Attend:
        def record(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
            kept.append((q, k))
            return attend(q, k, v, starts)

        return record

    own = attention.attends
    attention.attends = [recording(attend) for attend in own]
    try:
        yield kept
    finally:
        attention.attends = own


def _probabilities(q: Tensor, k: Tensor, window: int | None, rows: int) -> Tensor:
    """softmax(q k / sqrt(D)) of the last `rows` queries, over what each sees: [h, rows, T]."""
    length, groups = k.size(2), k.size(1)
    q, k = q[0, :, length - rows :].float(), k[0].float()
    scores = q.unflatten(0, (groups, -1)) @ k[:, None].transpose(-2, -1) / math.sqrt(q.size(-1))
    age = torch.arange(length - rows, length, device=q.device)[:, None] - torch.arange(length, device=q.device)
    hidden = age < 0 if window is None else (age < 0) | (age >= window)
    return scores.masked_fill_(hidden, -math.inf).softmax(-1).flatten(0, 1)


# ---------------------------------------------------------------- a look at the end of a text
@dataclass(frozen=True)
class AttentionLook:
    """How the heads of a layer look from the last N tokens of a text at these and at what is before them.

    `maps` [H, N, N] are among the shown, `earlier` [H, N] is the rest of each row: what went to tokens before them.
    `first` is the position of the first of the shown among the `read` tokens; `cut` ones before these did not fit.
    """

    layer: int
    kind: str
    heads: tuple[Head, ...]
    labels: tuple[str, ...]
    maps: Floats
    earlier: Floats
    first: int
    read: int
    cut: int

    def hidden(self, head: int) -> npt.NDArray[np.bool_]:
        """Which of the shown are outside the window, [N, N]: earlier than what the query sees."""
        place = np.arange(len(self.labels))
        window = self.heads[head].window
        age = place[:, None] - place
        return age >= window if window is not None else np.zeros_like(age, dtype=bool)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name; each head has its map."""
        heads = [
            {"head": h.number, "group": h.group, "window": h.window, "map": self.maps[h.number].tolist(),
             "earlier": self.earlier[h.number].tolist()}
            for h in self.heads
        ]  # fmt: skip
        return {
            "layer": self.layer, "kind": self.kind, "tokens": list(self.labels), "first": self.first,
            "read": self.read, "cut": self.cut, "heads": heads,
        }  # fmt: skip


def look_at_attention(
    model: GPT, tokenizer: Tokenizer, ids: Sequence[int], layer: int, last: int = MOST_SHOWN
) -> AttentionLook:
    """The attention of a layer among the `last` tokens of a text (at most `MOST_SHOWN`), all that fits being read.

    Raises:
        DgsgptError: there is no such layer, or the text is empty or not the model's.
    """
    check_layer(model.config, layer)
    reading = read_last(model, tokenizer, ids)
    shown = min(len(reading.ids), max(1, min(last, MOST_SHOWN)))
    maps = attention_maps(model, reading.tensor(model)[0], layer, last=shown).cpu().numpy()
    first = len(reading.ids) - shown
    return AttentionLook(
        layer=layer,
        kind=layer_name(model.config, layer),
        heads=tuple(heads_of(model.config, layer)),
        labels=tuple(label_of(tokenizer, token) for token in reading.ids[first:]),
        maps=np.ascontiguousarray(maps[:, :, first:]),
        earlier=maps[:, :, :first].sum(-1),
        first=first,
        read=len(reading.ids),
        cut=reading.cut,
    )


__all__ = ["MOST_SHOWN", "AttentionLook", "attention_maps", "look_at_attention"]
