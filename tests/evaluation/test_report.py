"""The breakdown of an evaluation against plain loops over its tokens, and what cannot be evaluated."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dgsgpt import files
from dgsgpt.config import DataConfig
from dgsgpt.data import prepare
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import train_bpe
from dgsgpt.errors import ConfigError, DataError
from dgsgpt.evaluation import evaluate_text, score_text
from dgsgpt.evaluation.breakdown import by_frequency, by_position, calibration, passages
from dgsgpt.evaluation.report import Frequencies, evaluate_fully, training_frequencies
from dgsgpt.model import GPT
from tests.model.tiny import tiny_model

TEXT = "".join(f"{i}: naïve 日本 text, {i * i} words.\n" for i in range(60))
BPE = train_bpe(TEXT, 300)


def model_of(vocab_size: int = 300, **changes: object) -> GPT:
    return tiny_model(vocab_size=vocab_size, block_size=24, **changes).eval()


def block_of(n: int, tokens_each: int) -> np.ndarray:
    return np.arange(n) // tokens_each


@pytest.mark.parametrize("asked", [{}, {"stride": 6}, {"context": 10, "stride": 10}, {"document_separator": "\n"}])
def test_figures_are_those_of_evaluate_text(asked: dict) -> None:
    model = model_of()
    report = evaluate_fully(model, BPE, TEXT, **asked)
    plain = {"block_size" if name == "context" else name: value for name, value in asked.items()}
    assert report.evaluation == evaluate_text(model, BPE, TEXT, **plain)
    assert (report.context, report.stride) == (asked.get("context", 24), asked.get("stride", 24))
    assert sum(g.tokens for g in report.by_position) == report.evaluation.tokens
    assert sum(g.tokens for g in report.by_frequency) == report.evaluation.tokens
    for groups in (report.by_position, report.by_frequency):
        mean = sum(g.tokens * g.loss for g in groups) / report.evaluation.tokens
        assert mean == pytest.approx(report.evaluation.loss, rel=1e-6)
    assert report.frequency_rule == "the text itself"
    assert (report.text_sha256, report.text_bytes) == (hashlib.sha256(TEXT.encode()).hexdigest(), len(TEXT.encode()))


def test_the_cost_is_what_was_read() -> None:
    read = 0
    model = model_of()
    handle = model.embed.register_forward_hook(lambda m, inputs, out: count(inputs[0]))

    def count(tokens: torch.Tensor) -> None:
        nonlocal read
        read += tokens.numel()

    report = evaluate_fully(model, BPE, TEXT, stride=6, batch_size=1)
    handle.remove()
    assert report.forward_tokens <= read < report.forward_tokens + 24  # the last window is padded
    assert report.forward_tokens == pytest.approx(report.evaluation.tokens * 24 / 6, rel=0.05)


# ---------------------------------------------------------------- by position
def test_the_loss_by_position_with_its_standard_error() -> None:
    scores = score_text(model_of(), BPE, TEXT)
    groups = by_position(scores)
    assert [(g.low, g.high) for g in groups] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 24)]
    per_window = 24 * scores.evaluation.bytes / scores.evaluation.tokens
    block = block_of(len(scores.nats), 24 * math.ceil(512 / per_window))
    assert block.max() > 2
    for g in groups:
        chosen = [i for i in range(len(scores.nats)) if g.low <= i % 24 + 1 <= g.high]
        nats = scores.nats[chosen]
        assert g.tokens == len(chosen)
        assert g.loss == pytest.approx(nats.mean())
        residuals = [sum(nats[block[chosen] == b] - nats.mean()) for b in set(block[chosen].tolist())]
        k = len(residuals)
        expected = math.sqrt(k / (k - 1) * sum(r**2 for r in residuals)) / len(chosen)
        assert g.standard_error == pytest.approx(expected)


def test_the_standard_error_is_about_right_for_tokens_that_are_alike() -> None:
    """Over many draws of correlated losses the means vary by what the error says."""
    scores = score_text(model_of(256), ByteTokenizer(), "ab" * 15_000, block_size=24, batch_size=64)
    chance = np.random.default_rng(0)
    n, means, errors = len(scores.nats), [], []
    for _ in range(150):
        slow = np.repeat(chance.standard_normal(n // 60 + 1), 60)[:n]  # passages of 60 tokens are alike
        (group,) = by_frequency(replace(scores, nats=slow + chance.standard_normal(n)), np.ones(256, np.int64))
        means.append(group.loss)
        errors.append(group.standard_error)
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.2)
    alone = math.sqrt(2 / n)
    assert np.mean(errors) > 4 * alone  # what it would be if tokens were independent


def test_positions_count_only_the_tokens_of_the_own_document() -> None:
    scores = score_text(model_of(256), ByteTokenizer(), "ab\n" * 20, block_size=10, document_separator="\n")
    assert scores.seen.tolist() == [min(before % 3, before % 10) + 1 for before in range(59)]
    assert {(g.low, g.high) for g in by_position(scores)} == {(1, 1), (2, 2), (3, 4)}


def test_an_exact_evaluation_has_nearly_all_tokens_in_the_last_bucket() -> None:
    groups = evaluate_fully(model_of(), BPE, TEXT, stride=1).by_position
    assert [(g.low, g.high) for g in groups][-1] == (17, 24)
    assert [g.tokens for g in groups[:-1]] == [1, 1, 2, 4, 8]


def test_one_block_has_no_standard_error() -> None:
    report = evaluate_fully(model_of(), BPE, TEXT[:60])
    assert {g.standard_error for g in (*report.by_position, *report.by_frequency)} == {None}


# ---------------------------------------------------------------- by frequency
def test_deciles_of_frequency() -> None:
    scores = score_text(model_of(256), ByteTokenizer(), "abcabcabdx" * 30)
    counts = np.zeros(256, np.int64)
    for token, often in {"a": 50, "b": 30, "c": 10, "d": 5, "e": 5}.items():
        counts[ord(token)] = often
    groups = by_frequency(scores, counts)
    # d and e share a group, although e is not in the text; x was never seen.
    assert [(g.low, g.high) for g in groups] == [(0, 0), (5, 5), (10, 10), (30, 30), (50, 50)]
    for g, letters in zip(groups, ("x", "d", "c", "b", "a"), strict=True):
        chosen = np.isin(scores.ids, [ord(letter) for letter in letters])
        assert g.tokens == chosen.sum()
        assert g.loss == pytest.approx(scores.nats[chosen].mean())


def test_each_decile_of_many_kinds_is_about_a_tenth() -> None:
    scores = score_text(model_of(256), ByteTokenizer(), "".join(map(chr, range(33, 127))) * 10)
    counts = np.zeros(256, np.int64)
    counts[33:127] = np.arange(1000, 1094)
    groups = by_frequency(scores, counts)
    assert len(groups) == 10
    shares = [sum(c for c in counts.tolist() if g.low <= c <= g.high) / counts.sum() for g in groups]
    assert shares == pytest.approx([0.1] * 10, abs=0.012)
    assert [g.low for g in groups] == sorted(g.low for g in groups)


def test_frequencies_of_the_training_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGSGPT_DATASETS", str(tmp_path / "sets"))
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    data = DataConfig.model_validate({"corpus": str(tmp_path / "text.txt"), "tokenizer": {"kind": "byte"}})
    dataset = prepare.prepare(data, 24)
    metadata = {"data_fingerprint": dataset.fingerprint}
    found = training_frequencies(metadata, dataset.tokenizer)
    assert found is not None
    assert found.counts.tolist() == np.bincount(dataset.tokens("train"), minlength=256).tolist()
    assert dataset.id in found.of
    report = evaluate_fully(model_of(256), ByteTokenizer(), "q" + TEXT, frequencies=found)
    assert dataset.id in report.frequency_rule
    assert training_frequencies(metadata, BPE) is None
    assert training_frequencies({}, dataset.tokenizer) is None


# ---------------------------------------------------------------- calibration and passages
def test_calibration_equals_a_loop_over_the_tokens() -> None:
    model = model_of(256)
    with torch.no_grad():
        model.embed.weight.mul_(3)
    scores = score_text(model, ByteTokenizer(), TEXT, block_size=24)
    ids = ByteTokenizer().encode(TEXT)
    for i in range(0, len(scores.nats), 11):
        window = int(scores.windows[i]) * 24
        with torch.no_grad():
            p = model(torch.tensor([ids[window : i + 1]])).logits[0, -1].double().softmax(0)
        assert scores.top[i] == pytest.approx(float(p.max()), rel=1e-4)
        assert scores.right[i] == (int(p.argmax()) == ids[i + 1])
    bins, error = calibration(scores)
    assert len(bins) > 2
    expected = 0.0
    for b in bins:
        chosen = [i for i, top in enumerate(scores.top) if b.low <= top < b.high or (b.high == 1 and top == 1)]
        assert b.tokens == len(chosen)
        assert b.confidence == pytest.approx(scores.top[chosen].mean(), rel=1e-5)
        assert b.accuracy == pytest.approx(scores.right[chosen].mean())
        expected += b.tokens / len(scores.nats) * abs(b.confidence - b.accuracy)
    assert error == pytest.approx(expected)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=lambda t: t.kind)
@pytest.mark.parametrize("most", [None, 400])
def test_passages_are_whole_characters_and_cost_what_they_say(tokenizer: object, most: int | None) -> None:
    scores = score_text(model_of(), tokenizer, TEXT, max_tokens=most)  # type: ignore[arg-type]
    hardest, easiest = passages(scores)
    assert 1 <= len(hardest) <= 5
    assert min(p.bpb for p in hardest) >= max(p.bpb for p in easiest)
    assert [p.bpb for p in hardest] == sorted((p.bpb for p in hardest), reverse=True)
    assert not {p.begin_byte for p in hardest} & {p.begin_byte for p in easiest}
    for p in (*hardest, *easiest):
        assert p.text == TEXT.encode()[p.begin_byte : p.end_byte].decode(errors="strict" if most is None else "replace")
        inside = (scores.begins >= p.begin_byte) & (scores.ends <= p.end_byte)
        assert (scores.ends - scores.begins)[inside].sum() == p.end_byte - p.begin_byte  # no gap
        bits = scores.nats[inside].sum() / math.log(2)
        assert p.bpb == pytest.approx(bits / (p.end_byte - p.begin_byte))
        if most is None:
            assert 100 <= p.end_byte - p.begin_byte <= 220


def test_the_hardest_passage_is_found() -> None:
    """A model that is sure of one letter finds others hard."""
    model = model_of(256)
    text = "a" * 1000 + "xyz" * 70 + "a" * 1000
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
        model.norm.weight.fill_(1.0)
        model.embed.weight[:, 0] = 1.0
        model.embed.weight[ord("a"), 0] = 3.0
    hardest, easiest = passages(score_text(model, ByteTokenizer(), text))
    assert "xyz" in hardest[0].text
    assert "".join(p.text for p in easiest).strip("a") == ""
    short, none = passages(score_text(model, ByteTokenizer(), "axa"))
    assert [p.text for p in short] == ["xa"]
    assert none == ()


# ---------------------------------------------------------------- as values, stopping, bad input
def test_a_report_is_plain_json() -> None:
    report = evaluate_fully(model_of(), BPE, TEXT)
    plain = report.to_dict()
    assert set(plain) >= {"loss", "ppl", "bpb", "tokens", "bytes", "context", "stride", "by_position", "by_frequency"}
    assert files.to_json(plain)
    assert set(report.figures()) == {"loss", "ppl", "bpb", "tokens", "bytes", "context", "stride"}
    assert plain["by_position"][0]["low"] == 1


def test_an_exception_of_the_caller_ends_it_and_leaves_the_model_as_it_was() -> None:
    calls: list[int] = []

    def stop(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) == 3:
            raise InterruptedError

    model = model_of()
    model.train()
    with pytest.raises(InterruptedError):
        evaluate_fully(model, BPE, TEXT, batch_size=1, on_batch=stop)
    assert len(calls) == 3
    assert model.training
    assert torch.is_grad_enabled()
    assert not model.norm._forward_hooks


@pytest.mark.parametrize(
    ("text", "asked", "message"),
    [
        ("", {}, "0 tokens; at least 2"),
        ("a", {}, "1 tokens; at least 2"),
        ("ab", {"stride": 0}, "stride=0 must be 1 to 24 tokens"),
        ("ab", {"stride": 25}, "stride=25 must be 1 to 24 tokens"),
        ("ab", {"stride": 9, "context": 8}, "stride=9 must be 1 to 8 tokens, the context"),
        ("ab", {"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ("a\ud800b", {}, "does not know"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(text: str, asked: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        evaluate_fully(model_of(256), ByteTokenizer(), text, **asked)
    assert "\n" not in str(caught.value)


def test_unknown_characters_are_listed() -> None:
    with pytest.raises(DataError, match="'x', 'y'"):
        evaluate_fully(model_of(256), CharTokenizer("ab"), "abxy")


def test_a_context_beyond_learned_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match="context=25 must not exceed the model's 24 learned positions"):
        evaluate_fully(model_of(rope=None), BPE, TEXT, context=25)
    with pytest.raises(ConfigError, match="context=0 must be at least 1"):
        evaluate_fully(model_of(), BPE, TEXT, context=0)


def test_weights_that_are_not_numbers_are_said() -> None:
    model = model_of()
    with torch.no_grad():
        model.embed.weight[7] = torch.nan
    with pytest.raises(DataError, match="predictions are not numbers"):
        evaluate_fully(model, BPE, TEXT)


def test_two_tokens_are_enough() -> None:
    report = evaluate_fully(model_of(256), ByteTokenizer(), "ab")
    assert report.evaluation.tokens == 1
    assert files.to_json(report.to_dict())
    assert report.hardest[0].text == "b"


def test_frequencies_count_in_words_of_their_own() -> None:
    given = Frequencies(np.ones(300, np.int64), "another text")
    assert evaluate_fully(model_of(), BPE, TEXT, frequencies=given).frequency_rule == "another text"
