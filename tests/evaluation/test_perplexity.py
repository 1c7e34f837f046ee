"""Evaluation against a token-by-token reference in double precision."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.config import DataConfig, TokenizerConfig, build_config
from dgsgpt.data import prepare
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import train_bpe
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError
from dgsgpt.evaluation import evaluate, evaluate_text, score_text, sliding
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


def reference(model: GPT, ids: list[int], block_size: int, stride: int | None = None) -> float:
    """Total nats, one token at a time, each from the start of the first window that has it."""
    total, step = 0.0, stride or block_size
    for place in range(1, len(ids)):
        start = next(begin for begin in range(0, len(ids), step) if place <= begin + block_size)
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


@pytest.mark.parametrize("stride", [1, 2, 5, 11, 12])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_overlapping_windows_equal_the_token_by_token_reference(model: GPT, stride: int, batch_size: int) -> None:
    tokenizer, text = ByteTokenizer(), TEXT[:150]
    ids = tokenizer.encode(text)
    seen: list[tuple[int, int]] = []
    result = evaluate_text(
        model, tokenizer, text, block_size=12, stride=stride, batch_size=batch_size,
        on_batch=lambda *done: seen.append(done),
    )  # fmt: skip
    assert (result.tokens, result.bytes) == (len(ids) - 1, len(ids) - 1)
    assert (result.context, result.stride) == (12, stride)
    assert result.loss * result.tokens == pytest.approx(reference(model, ids, 12, stride), rel=1e-6)
    assert seen[-1] == (result.tokens, result.tokens)


def test_a_stride_of_one_gives_each_token_all_the_context_there_is(model: GPT) -> None:
    ids = ByteTokenizer().encode(TEXT[:100])
    nats = 0.0
    for place in range(1, len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[max(0, place - 12) : place]])).logits[0, -1].double()
        nats -= float(torch.log_softmax(logits, 0)[ids[place]])
    result = evaluate_text(model, ByteTokenizer(), TEXT[:100], block_size=12, stride=1)
    assert result.loss * result.tokens == pytest.approx(nats, rel=1e-6)


def test_a_stride_as_long_as_the_context_changes_nothing(model: GPT) -> None:
    plain = evaluate_text(model, ByteTokenizer(), TEXT)
    assert evaluate_text(model, ByteTokenizer(), TEXT, stride=24) == plain
    assert (plain.context, plain.stride) == (24, 24)
    assert evaluate_text(model, ByteTokenizer(), TEXT, stride=6).loss != pytest.approx(plain.loss, rel=1e-5)
    short = evaluate_text(model, ByteTokenizer(), TEXT[:9], stride=20)
    assert (short.context, short.stride) == (9, 9)
    assert short.loss == evaluate_text(model, ByteTokenizer(), TEXT[:9], stride=1).loss


@pytest.mark.parametrize("most", [1, 7, 24, 25, 100, 333, 10**9])
def test_overlapping_windows_of_a_part_of_a_text(model: GPT, most: int) -> None:
    tokenizer = ByteTokenizer()
    scores = score_text(model, tokenizer, TEXT, stride=7, max_tokens=most)
    assert scores.evaluation.tokens == min(most, len(tokenizer.encode(TEXT)) - 1)
    whole = score_text(model, tokenizer, TEXT, stride=7)
    same = np.searchsorted(whole.ends, scores.ends)
    np.testing.assert_array_equal(whole.ends[same], scores.ends)
    np.testing.assert_allclose(scores.nats, whole.nats[same], rtol=1e-4, atol=1e-5)
    if most == 333:
        assert scores.ends[-1] > 0.95 * len(scores.data)


@pytest.mark.parametrize("stride", [1, 3, 5])
def test_overlapping_windows_do_not_look_into_another_document(model: GPT, stride: int) -> None:
    parts = [f"{i}: naïve text, {i * i}.\n\n" for i in range(6)]
    documents = [ByteTokenizer().encode(part) for part in parts]
    asked = {"block_size": 12, "stride": stride, "document_separator": "\n\n"}
    result = evaluate_text(model, ByteTokenizer(), "".join(parts), **asked)
    assert result.loss * result.tokens == pytest.approx(alone(model, documents, 12, stride), rel=1e-6)


@settings(max_examples=60)
@given(
    tokens=st.integers(2, 70), context=st.integers(1, 20), stride=st.integers(1, 20), batch_size=st.integers(1, 4),
    most=st.none() | st.integers(1, 80),
)  # fmt: skip
def test_windows_judge_each_token_once_with_enough_before_it(
    tokens: int, context: int, stride: int, batch_size: int, most: int | None
) -> None:
    stride = min(stride, context)
    judged, read = [], 0
    places = np.arange(tokens)
    for batch, count in sliding.sliding_windows(places, context, stride, most, batch_size=batch_size):
        at = batch.targets[batch.targets >= 0].numpy()
        assert len(at) == count
        row, place = np.nonzero(batch.targets.numpy() >= 0)
        np.testing.assert_array_equal(at, batch.inputs.numpy()[row, place] + 1)
        number = sliding.window_of(at, context, stride)
        np.testing.assert_array_equal(at - 1 - number * stride, place)
        assert (place + 1 >= np.minimum(at, context - stride + 1)).all()
        judged.extend(at.tolist())
        read += int((batch.inputs.numpy().max(1) - number[np.unique(row, return_index=True)[1]] * stride + 1).sum())
    if most is None:
        assert judged == list(range(1, tokens))
        assert read == sliding.forward_tokens(tokens - 1, context, stride)
    else:
        assert judged == sorted(set(judged))
        assert len(judged) == min(most, tokens - 1)


def alone(model: GPT, documents: list[list[int]], block_size: int, stride: int | None = None) -> float:
    """Total nats of windows over `documents` in a row, each piece of a document in a window read by itself."""
    step = stride or block_size
    ids = [token for document in documents for token in document]
    number = [i for i, document in enumerate(documents) for _ in document]
    total = 0.0
    for place in range(1, len(ids)):
        window = next(begin for begin in range(0, len(ids), step) if place <= begin + block_size)
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
    for stride in (0, -1, 25):
        with pytest.raises(DataError, match=f"stride={stride} must be 1 to 24 tokens, the context; leave it out"):
            evaluate_text(model, ByteTokenizer(), TEXT, stride=stride)


def test_a_diverged_model_gives_nan_not_a_crash(model: GPT) -> None:
    import copy

    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    result = evaluate_text(broken, ByteTokenizer(), TEXT)
    assert np.isnan([result.loss, result.ppl, result.bpb]).all()
