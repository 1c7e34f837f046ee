"""Evaluation against a token-by-token reference in double precision."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dgsgpt.config import DataConfig, TokenizerConfig, build_config
from dgsgpt.data import prepare
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import train_bpe
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError
from dgsgpt.evaluation import evaluate, evaluate_text
from dgsgpt.model import GPT

TEXT = "".join(f"{i}: naïve 日本 text, {i * i} words.\n" for i in range(40))


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(1)
    values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 24, "vocab_size": 300, "dropout": 0.3}
    gpt = GPT(build_config({"data": {"tokenizer": {"kind": "byte"}}, "model": values}).model)
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return gpt.eval()


def reference(model: GPT, ids: list[int], block_size: int) -> float:
    """Total nats, one token at a time, each from the start of its own window."""
    total = 0.0
    for place in range(1, len(ids)):
        start = (place - 1) // block_size * block_size
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, 0)[ids[place]])
    return total


@pytest.mark.parametrize(
    "tokenizer", [ByteTokenizer(), train_bpe(TEXT, 300), CharTokenizer("".join(sorted(set(TEXT))))]
)
@pytest.mark.parametrize("block_size", [24, 7])
def test_every_figure_equals_the_token_by_token_reference(model: GPT, tokenizer: Tokenizer, block_size: int) -> None:
    text = TEXT[:400]
    ids = tokenizer.encode(text)
    result = evaluate_text(model, tokenizer, text, block_size=block_size, batch_size=3)
    nats = reference(model, ids, block_size)
    predicted_bytes = len(text.encode()) - len(tokenizer.token_bytes(ids[0]))
    assert result.tokens == len(ids) - 1
    assert result.bytes == predicted_bytes
    assert result.loss == pytest.approx(nats / (len(ids) - 1), rel=1e-6)
    assert result.ppl == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
    assert result.bpb == pytest.approx(nats / math.log(2) / predicted_bytes, rel=1e-6)


def test_the_batch_size_and_the_mode_do_not_matter(model: GPT) -> None:
    a = evaluate_text(model, ByteTokenizer(), TEXT, batch_size=1)
    model.train()
    b = evaluate_text(model, ByteTokenizer(), TEXT, batch_size=64)
    assert model.training
    model.eval()
    assert a.loss == pytest.approx(b.loss, rel=1e-6)
    assert evaluate_text(model, ByteTokenizer(), TEXT, batch_size=64) == b


def test_a_uniform_model_needs_eight_bits_a_byte() -> None:
    class Uniform(torch.nn.Module):
        config = build_config({"data": {"tokenizer": {"kind": "byte"}}, "model": {"block_size": 16}}).model

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor, y: torch.Tensor, documents: torch.Tensor | None) -> object:
            return type("Out", (), {"loss": torch.tensor(math.log(256.0), dtype=torch.float64)})

    result = evaluate_text(Uniform(), ByteTokenizer(), TEXT)  # type: ignore[arg-type]
    assert result.bpb == pytest.approx(8.0, rel=1e-12)
    assert result.ppl == pytest.approx(256.0, rel=1e-12)


def test_a_dataset_is_judged_on_its_whole_validation_split(model: GPT, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    data = DataConfig(corpus=str(tmp_path / "text.txt"), tokenizer=TokenizerConfig(kind="bpe", vocab_size=300))
    dataset = prepare.prepare(data, 24, tmp_path / "sets")
    seen: list[tuple[int, int]] = []
    result = evaluate(
        model, dataset, block_size=24, batch_size=2, device="cpu", on_batch=lambda *done: seen.append(done)
    )
    ids = dataset.tokens("val").tolist()
    assert result == evaluate_text(model, dataset.tokenizer, dataset.tokenizer.decode(ids), block_size=24, batch_size=2)
    assert result.tokens == dataset.val_tokens - 1
    assert result.bytes == dataset.val_bytes - len(dataset.tokenizer.token_bytes(ids[0]))
    assert result.loss * result.tokens == pytest.approx(reference(model, ids, 24), rel=1e-6)
    assert seen[-1] == (result.tokens, result.tokens)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    short = evaluate(model, dataset, block_size=24, max_tokens=30)
    assert short.tokens == 30
    assert evaluate(model, dataset, block_size=24, max_tokens=10**9).tokens == result.tokens


def alone(model: GPT, documents: list[list[int]], block_size: int) -> float:
    """Total nats of windows over `documents` in a row, each piece of a document in a window read by itself."""
    ids = [token for document in documents for token in document]
    number = [i for i, document in enumerate(documents) for _ in document]
    total = 0.0
    for place in range(1, len(ids)):
        window = (place - 1) // block_size * block_size
        start = max(window, number.index(number[place - 1]))
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, 0)[ids[place]])
    return total


@pytest.mark.parametrize("block_size", [24, 7])
def test_a_dataset_of_documents_is_judged_as_each_document_alone(model: GPT, tmp_path: Path, block_size: int) -> None:
    (tmp_path / "text.txt").write_text(TEXT.replace(".\n", ".\n\n"), encoding="utf-8")
    values = {"corpus": str(tmp_path / "text.txt"), "tokenizer": {"kind": "bpe", "vocab_size": 300}}
    data = DataConfig.model_validate({**values, "val_fraction": 0.2, "document_separator": "\n\n"})
    dataset = prepare.prepare(data, 24, tmp_path / "sets")
    starts, ids = dataset.document_starts("val"), dataset.tokens("val")
    assert starts is not None
    documents = [part.tolist() for part in np.split(ids, starts[1:])]
    assert len(documents) == 8
    result = evaluate(model, dataset, block_size=block_size, batch_size=3)
    assert result.tokens == len(ids) - 1
    assert result.loss * result.tokens == pytest.approx(alone(model, documents, block_size), rel=1e-6)
    text = dataset.tokenizer.decode(ids.tolist())
    asked = {"block_size": block_size, "batch_size": 3}
    assert evaluate_text(model, dataset.tokenizer, text, document_separator="\n\n", **asked) == result
    assert evaluate_text(model, dataset.tokenizer, text, **asked).loss != pytest.approx(result.loss, rel=1e-4)


def test_a_text_without_its_separator_is_one_document(model: GPT) -> None:
    whole = evaluate_text(model, ByteTokenizer(), TEXT)
    assert evaluate_text(model, ByteTokenizer(), TEXT, document_separator="@").loss == pytest.approx(whole.loss)
    with pytest.raises(DataError, match="0 tokens; at least 2"):
        evaluate_text(model, ByteTokenizer(), "", document_separator="@")


def test_training_can_go_on_after_an_evaluation(model: GPT) -> None:
    evaluate_text(model, ByteTokenizer(), TEXT)
    out = model(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long))
    assert out.loss.requires_grad


def test_what_cannot_be_judged_is_refused(model: GPT) -> None:
    for text in ("", "a"):
        with pytest.raises(DataError, match="at least 2"):
            evaluate_text(model, ByteTokenizer(), text)
    with pytest.raises(DataError, match="'z'"):
        evaluate_text(model, CharTokenizer("ab"), "abz")
    wide = CharTokenizer("".join(map(chr, range(1000, 1400))))
    with pytest.raises(DataError, match="token id 399, but the model knows 300"):
        evaluate_text(model, wide, "ϨϩϪ" + chr(1399))
    for setting in ("block_size", "max_tokens", "batch_size"):
        with pytest.raises(DataError, match=f"{setting}=0"):
            evaluate_text(model, ByteTokenizer(), TEXT, **{setting: 0})


def test_a_diverged_model_gives_nan_not_a_crash(model: GPT) -> None:
    import copy

    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    result = evaluate_text(broken, ByteTokenizer(), TEXT)
    assert np.isnan([result.loss, result.ppl, result.bpb]).all()
