"""Attention maps are what the model really attends with: its output is rebuilt from them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dgsgpt.config import layer_windows
from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.inspect.attention import MOST_SHOWN, attention_maps, look_at_attention
from dgsgpt.inspect.heads import heads_of, layer_name
from dgsgpt.inspect.reading import label_of
from dgsgpt.model import GPT
from tests.model.tiny import VARIANTS, random_tokens, tiny_config, tiny_model

TOKENS = random_tokens(1, 40)[0]
KINDS = ["plain", "gqa", "mqa", "window", "relu2", "layernorm", "none", "both", "both_mqa", "yarn", "shortcuts"]
KINDS += ["ngram", "head_size", "narrow_heads", "qkv_bias", "all_new"]


def attended(model: GPT, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the layer's heads give [T, H, D] and the values they mix [T, G, D], caught on the way through the model."""
    caught: dict[str, torch.Tensor] = {}
    attention: Any = model.blocks[layer].attn
    hooks = [
        attention.out.register_forward_pre_hook(lambda m, given: caught.update(out=given[0])),
        attention.value_mix.register_forward_hook(lambda m, given, values: caught.update(values=values)),
    ]
    with torch.no_grad():
        model.eval()(TOKENS[None])
    for hook in hooks:
        hook.remove()
    return caught["out"][0].unflatten(-1, (model.config.n_head, -1)), caught["values"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_maps_and_values_give_the_output_of_every_layer(kind: str) -> None:
    model = tiny_model(**VARIANTS[kind])
    for layer in range(model.config.n_layer):
        maps = attention_maps(model, TOKENS, layer)
        out, values = attended(model, layer)
        for head in heads_of(model.config, layer):
            rebuilt = maps[head.number] @ values[:, head.group]
            torch.testing.assert_close(rebuilt, out[:, head.number], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["gqa", "window", "both", "both_mqa"])
def test_rows_sum_to_one_and_nothing_later_or_outside_the_window_is_seen(kind: str) -> None:
    model = tiny_model(**VARIANTS[kind])
    age = torch.arange(40)[:, None] - torch.arange(40)
    for layer in range(model.config.n_layer):
        maps = attention_maps(model, TOKENS, layer)
        torch.testing.assert_close(maps.sum(-1), torch.ones(4, 40))
        for head in heads_of(model.config, layer):
            seen = (age >= 0) & (age < (head.window or 40))
            assert bool((maps[head.number][~seen] == 0).all())
            assert bool((maps[head.number][seen] > 0).all())


def test_maps_equal_a_softmax_written_out() -> None:
    model = tiny_model(**VARIANTS["plain"])  # without rotary positions: queries and keys are plain projections
    caught: list[torch.Tensor] = []
    attention: Any = model.blocks[1].attn
    hook = attention.register_forward_pre_hook(lambda m, given: caught.append(given[0][0]))
    with torch.no_grad():
        model(TOKENS[None])
        hook.remove()
        q, k = (layer(caught[0]).unflatten(-1, (4, 8)) for layer in (attention.q, attention.k))
    maps = attention_maps(model, TOKENS, 1)
    for head in (0, 3):
        for row in (0, 7, 39):
            logits = [float(q[row, head] @ k[key, head]) / math.sqrt(8) for key in range(row + 1)]
            shares = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(maps[head, row, : row + 1], shares, atol=1e-6)


def test_the_last_rows_are_those_of_the_whole_map() -> None:
    model = tiny_model(**VARIANTS["both"])
    torch.testing.assert_close(attention_maps(model, TOKENS, 1, last=5), attention_maps(model, TOKENS, 1)[:, -5:])


def test_looking_leaves_the_model_as_it_was() -> None:
    model = tiny_model(rope=None).train()
    attention: Any = model.blocks[0].attn
    before = list(attention.attends)
    attention_maps(model, TOKENS, 0)
    with pytest.raises(ValueError, match="learned positions"):
        attention_maps(model, random_tokens(1, 60)[0], 0)
    assert attention.attends == before
    assert model.training
    assert not attention.out._forward_pre_hooks


def test_kinds_of_layers_and_heads_are_named_as_the_model_builds_them() -> None:
    config = tiny_config(window={"size": 8, "pattern": "SLB"})
    assert [layer_name(config, layer) for layer in range(3)] == ["local 8", "global", "local 8 and global"]
    assert [head.window for head in heads_of(config, 2)] == [8, 8, None, None]
    assert [head.group for head in heads_of(config, 2)] == [0, 0, 1, 1]
    assert layer_windows(config)[2] == (8, None)
    with pytest.raises(DgsgptError, match="layer 3 must be 0 to 2"):
        heads_of(config, 3)


# ---------------------------------------------------------------- a look at the end of a text
def test_a_look_shows_the_last_tokens_and_what_went_to_earlier_ones() -> None:
    model, tokenizer = tiny_model(vocab_size=256, window={"size": 8, "pattern": "SL"}), ByteTokenizer()
    ids = tokenizer.encode("It was the first time that she had seen him in the house of her uncle.")
    for layer, window in ((0, 8), (1, None)):
        look = look_at_attention(model, tokenizer, ids, layer, last=12)
        assert (look.read, look.cut, look.first) == (48, len(ids) - 48, 36)
        assert look.labels == tuple(label_of(tokenizer, i) for i in ids[-12:])
        np.testing.assert_allclose(look.maps.sum(-1) + look.earlier, 1.0, atol=1e-5)
        outside = look.hidden(0)
        assert outside.any() == (window is not None)
        assert (look.maps[0][outside] == 0).all()
        assert look.to_dict()["heads"][2] == {
            "head": 2, "group": 1, "window": window, "map": look.maps[2].tolist(), "earlier": look.earlier[2].tolist()
        }  # fmt: skip


def test_a_look_is_bounded_and_short_or_empty_texts_are_told() -> None:
    model, tokenizer = tiny_model(vocab_size=256, block_size=300), ByteTokenizer()
    assert look_at_attention(model, tokenizer, [65] * 250, 0, last=10**9).maps.shape == (4, MOST_SHOWN, MOST_SHOWN)
    assert look_at_attention(model, tokenizer, [65], 0).maps.tolist() == [[[1.0]]] * 4
    with pytest.raises(DataError, match="empty"):
        look_at_attention(model, tokenizer, [], 0)
    with pytest.raises(DataError, match="the model knows 61"):
        look_at_attention(tiny_model(), tokenizer, [65, 200], 0)


def test_what_a_model_expects_before_every_text_is_read_and_shown_first() -> None:
    class Begun(ByteTokenizer):
        def __init__(self) -> None:
            super().__init__()
            self._table.append(b"")
            self.specials["<s>"] = 256

        @property
        def begin_of_text(self) -> int:
            return 256

    model = tiny_model(vocab_size=257)
    assert look_at_attention(model, Begun(), [65, 66], 0).labels == ("<s>", "A", "B")
    assert look_at_attention(model, Begun(), [], 0).labels == ("<s>",)
    long = look_at_attention(model, Begun(), [65] * 100, 0)
    assert (long.read, long.cut, long.labels[0]) == (48, 53, "<s>")


@pytest.mark.parametrize(
    ("raw", "label"),
    [(b" the", "the"), (b"  ", "··"), (b"\n", "⏎"), (b"\xe2\x80", r"\xe2\x80"), (b"\x1b[2J", r"\x1b[2J"),
     (b"a" * 40, "a" * 13 + "…"), (b"<b>", "<b>")],
)  # fmt: skip
def test_labels_are_short_and_show_what_cannot_be_seen(raw: bytes, label: str) -> None:
    class One(ByteTokenizer):
        def token_bytes(self, token: int) -> bytes:
            return raw

    assert label_of(One(), 0) == label
