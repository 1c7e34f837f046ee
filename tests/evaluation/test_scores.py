"""The nats of single tokens against `evaluate_text` and against a token-by-token reference."""

from __future__ import annotations

import hashlib
import math
import struct

import numpy as np
import pytest
import torch

import dgsgpt.architecture
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import train_bpe
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError
from dgsgpt.evaluation import evaluate_text, score_text
from tests.model.tiny import tiny_model

TEXT = "".join(f"{i}: naïve 日本 text, {i * i} words.\n" for i in range(40))
TOKENIZERS = [ByteTokenizer(), train_bpe(TEXT, 300), CharTokenizer("".join(sorted(set(TEXT))))]


def model_of(tokenizer: Tokenizer, **changes: object) -> torch.nn.Module:
    return tiny_model(vocab_size=tokenizer.vocab_size, block_size=24, **changes).eval()


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
@pytest.mark.parametrize("asked", [{}, {"block_size": 7}, {"max_tokens": 100}, {"document_separator": "\n"}])
@pytest.mark.parametrize("tied", [True, False])
def test_figures_are_exactly_those_of_evaluate_text(tokenizer: Tokenizer, asked: dict, tied: bool) -> None:
    model = model_of(tokenizer, tie_embeddings=tied)
    found = score_text(model, tokenizer, TEXT, **asked)
    assert found.evaluation == evaluate_text(model, tokenizer, TEXT, **asked)
    assert found.nats.dtype == np.float64
    assert len(found.nats) == found.evaluation.tokens
    assert found.nats.mean() == pytest.approx(found.evaluation.loss, rel=1e-6)
    assert (found.ends - found.begins).sum() == found.evaluation.bytes


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "head_bias": True}, {"logit_softcap": 5.0}])
def test_a_loss_in_chunks_gives_the_same_nats(monkeypatch: pytest.MonkeyPatch, changes: dict) -> None:
    tokenizer = TOKENIZERS[1]
    model = model_of(tokenizer, **changes)
    if changes.get("head_bias"):
        torch.nn.init.normal_(model.head.bias)
    whole = score_text(model, tokenizer, TEXT)
    monkeypatch.setattr(dgsgpt.architecture, "LOSS_CHUNK_LOGITS", 4000)
    monkeypatch.setattr(dgsgpt.architecture, "MIN_LOSS_CHUNK", {"cpu": 5, "cuda": 5})
    assert model(torch.zeros(2, 24, dtype=torch.long), torch.zeros(2, 24, dtype=torch.long)).logits is None
    chunked = score_text(model, tokenizer, TEXT)
    np.testing.assert_allclose(chunked.nats, whole.nats, rtol=1e-5, atol=1e-6)
    assert chunked.evaluation == evaluate_text(model, tokenizer, TEXT)
    assert chunked.windows_sha256 == whole.windows_sha256
    assert not model.norm._forward_hooks


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
@pytest.mark.parametrize("max_tokens", [None, 60])
def test_each_token_is_where_it_says(tokenizer: Tokenizer, max_tokens: int | None) -> None:
    model, ids = model_of(tokenizer), tokenizer.encode(TEXT)
    found = score_text(model, tokenizer, TEXT, block_size=10, max_tokens=max_tokens)
    assert found.data == TEXT.encode()
    starts = np.cumsum([0, *(len(tokenizer.token_bytes(token)) for token in ids)])
    for i in range(0, len(found.nats), 7):
        begin, end = int(found.begins[i]), int(found.ends[i])
        assert found.data[begin:end] == tokenizer.token_bytes(int(found.ids[i]))
        at = int(np.searchsorted(starts, begin))
        window = int(found.windows[i]) * 10
        assert at == window + int(found.places[i]) + 1
        with torch.no_grad():
            logits = model(torch.tensor([ids[window:at]])).logits[0, -1].double()
        assert found.nats[i] == pytest.approx(-float(torch.log_softmax(logits, 0)[ids[at]]), rel=1e-4, abs=1e-5)
    assert (np.diff(found.ends) > 0).all()
    if max_tokens:
        assert len(found.nats) == max_tokens
        assert found.windows[-1] > 0.7 * len(ids) / 10  # spread over the text


def test_the_hash_is_over_the_tokens_of_the_windows() -> None:
    tokenizer = ByteTokenizer()
    found = score_text(model_of(tokenizer), tokenizer, "abcdefgh", block_size=3)
    windows = ["abcd", "defg", "gh"]
    packed = b"".join(struct.pack(f"<{len(w) + 1}I", len(w), *w.encode()) for w in windows)
    assert found.windows_sha256 == hashlib.sha256(packed).hexdigest()
    assert score_text(model_of(tokenizer), tokenizer, "abcdefgh", block_size=4).windows_sha256 != found.windows_sha256


def test_the_batch_size_and_the_mode_do_not_matter() -> None:
    tokenizer = ByteTokenizer()
    model = model_of(tokenizer, dropout=0.3)
    one = score_text(model, tokenizer, TEXT, batch_size=1)
    model.train()
    many = score_text(model, tokenizer, TEXT, batch_size=64)
    assert model.training
    np.testing.assert_allclose(one.nats, many.nats, rtol=1e-4, atol=1e-5)
    assert one.windows_sha256 == many.windows_sha256
    again = score_text(model, tokenizer, TEXT, batch_size=64)
    assert np.array_equal(many.nats, again.nats)


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    score_text(model_of(TOKENIZERS[0]), TOKENIZERS[0], TEXT, batch_size=5, on_batch=lambda *done: seen.append(done))
    total = len(TEXT.encode()) - 1
    assert seen[-1] == (total, total)
    assert len(seen) == math.ceil(math.ceil(total / 24) / 5)


def test_what_cannot_be_scored_is_refused() -> None:
    model = model_of(TOKENIZERS[0])
    with pytest.raises(DataError, match="1 tokens; at least 2"):
        score_text(model, ByteTokenizer(), "a")
    with pytest.raises(DataError, match="'z'"):
        score_text(model, CharTokenizer("ab"), "abz")
    with pytest.raises(DataError, match="block_size=0"):
        score_text(model, ByteTokenizer(), TEXT, block_size=0)
    wide = CharTokenizer("".join(map(chr, range(1000, 1400))))
    with pytest.raises(DataError, match="token id 399, but the model knows 256"):
        score_text(model, wide, "ϨϩϪ" + chr(1399))
