"""Laws of a fair comparison: identity, symmetry, coverage, the same bytes for all, and what cannot be compared."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from dgsgpt.compare_command import compare as command
from dgsgpt.config import build_config
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import train_bpe
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import CheckpointError, DataError
from dgsgpt.evaluation import evaluate_text
from dgsgpt.evaluation.paired import Comparison, Subject, bootstrap, compare, spans
from dgsgpt.model import GPT
from dgsgpt.runs import create_run
from dgsgpt.unseen import training_notes, unseen_fraction
from tests.model.tiny import tiny_model

TEXT = "".join(f"{i}: naïve 日本 text, {i * i} words.\n" for i in range(200))
BYTES, CHARS, BPE = ByteTokenizer(), CharTokenizer("".join(sorted(set(TEXT)))), train_bpe(TEXT[:2000], 280)


def subject(name: str, seed: int = 0, tokenizer: Tokenizer = BYTES, **changes: Any) -> Subject:
    values = {"vocab_size": tokenizer.vocab_size, "n_layer": 1, "n_embd": 16, "block_size": 32, **changes}
    return Subject.of(name, tiny_model(seed, **values).eval(), tokenizer)


def opened(given: Subject) -> GPT:
    with given.opened() as model:
        return model


def ends(result: Comparison, name: str = "loss", pair: int = 0) -> tuple[float, float, float]:
    found = result.pairs[pair].differences[name]
    assert found is not None
    return found.value, found.low, found.high


# ---------------------------------------------------------------- identity and symmetry
def test_a_model_against_itself_is_exactly_zero() -> None:
    a = subject("a")
    for b in (a, subject("copy")):
        result = compare([a, b], TEXT, draws=500)
        assert {name: ends(result, name) for name in result.pairs[0].differences} == dict.fromkeys(
            ("bpb", "loss", "rare", "late"), (0.0, 0.0, 0.0)
        )
        assert result.pairs[0].verdict == "identical"


def test_a_model_against_itself_is_identical_beside_one_of_another_tokenizer() -> None:
    result = compare([subject("a"), subject("a"), subject("c", tokenizer=CHARS)], TEXT, draws=500)
    assert (result.pairs[0].verdict, ends(result, "bpb")) == ("identical", (0.0, 0.0, 0.0))
    assert result.pairs[1].verdict != "identical"


@pytest.mark.parametrize("tokenizer", [BYTES, CHARS], ids=["same tokenizer", "different tokenizers"])
def test_swapping_changes_the_sign_and_nothing_else(tokenizer: Tokenizer) -> None:
    a, b = subject("a", 1), subject("b", 2, tokenizer)
    there, back = compare([a, b], TEXT, draws=500), compare([b, a], TEXT, draws=500)
    for name, found in there.pairs[0].differences.items():
        other = back.pairs[0].differences[name]
        if found is None or other is None:
            assert (found, other, tokenizer) == (None, None, CHARS)
            continue
        assert (found.value, found.low, found.high) == (-other.value, -other.high, -other.low)
    assert there.models[0].bpb == back.models[1].bpb
    assert there.sha256 == back.sha256
    verdicts = {there.pairs[0].verdict, back.pairs[0].verdict}
    assert verdicts in ({"A is better", "B is better"}, {"no difference shown"})


def test_equal_input_gives_equal_figures() -> None:
    subjects = [subject("a"), subject("b", 1)]
    assert compare(subjects, TEXT).to_dict() == compare(subjects, TEXT).to_dict()


# ---------------------------------------------------------------- the interval
def brute(differences: np.ndarray, sizes: np.ndarray, draws: int) -> list[float]:
    chance = random.Random(0)
    values = []
    for _ in range(draws):
        drawn = [chance.randrange(len(sizes)) for _ in sizes]
        values.append(sum(differences[i] for i in drawn) / sum(sizes[i] for i in drawn))
    return sorted(values)


def test_the_interval_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(50, 200, 40).astype(float)
    differences = rng.normal(0.02, 0.1, 40) * sizes
    low, high = bootstrap(differences[:, None], sizes, 20_000)
    values = brute(differences, sizes, 20_000)
    spread = values[-500] - values[499]
    assert low[0] == pytest.approx(values[499], abs=0.03 * spread)
    assert high[0] == pytest.approx(values[-500], abs=0.03 * spread)


def test_quantities_share_the_draws_and_the_interval_is_symmetric_in_sign() -> None:
    rng = np.random.default_rng(2)
    d, sizes = rng.normal(size=(35, 1)), np.full(35, 10.0)
    low, high = bootstrap(np.hstack([d, d + 10.0, -d]), sizes, 1000)
    assert (low[1], high[1]) == pytest.approx((low[0] + 1, high[0] + 1))
    assert (low[2], high[2]) == (-high[0], -low[0])


def test_the_interval_holds_the_truth_in_about_95_percent() -> None:
    held = {0.0: 0, 0.3: 0}
    for experiment in range(300):
        rng = np.random.default_rng(experiment)
        sizes = rng.integers(60, 130, 60).astype(float)
        noise = rng.standard_t(5, 60)  # passages that stand out, as texts have
        for true in held:
            low, high = bootstrap(((noise + true) * sizes)[:, None], sizes, 1000, seed=experiment)
            held[true] += bool(low[0] <= true <= high[0])
    assert all(0.90 <= count / 300 <= 0.99 for count in held.values()), held


# ---------------------------------------------------------------- verdicts
def trained(seed: int, steps: int, make: Callable[[torch.Generator], torch.Tensor]) -> Subject:
    """A tiny model after some steps on batches [B, T] of tokens."""
    torch.manual_seed(seed)
    model = tiny_model(seed, vocab_size=256, n_layer=1, n_embd=16, block_size=32)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = make(generator)
        optimizer.zero_grad()
        model(x[:, :-1], x[:, 1:]).loss.backward()
        optimizer.step()
    return Subject.of(f"seed {seed}", model.eval(), BYTES)


def noise(generator: torch.Generator) -> torch.Tensor:
    return torch.randint(97, 105, (16, 33), generator=generator)


def order(generator: torch.Generator) -> torch.Tensor:
    start = torch.randint(8, (16, 1), generator=generator)
    return 97 + (start + torch.arange(33)) % 8


def letters(count: int) -> str:
    chance = random.Random(3)
    return "".join(chance.choice("abcdefgh") for _ in range(count))


def test_two_seeds_on_random_data_show_no_difference() -> None:
    result = compare([trained(1, 60, noise), trained(2, 60, noise)], letters(20_000))
    assert result.pairs[0].verdict == "no difference shown"
    assert "holds zero" in result.pairs[0].sentence
    loss = result.models[0].loss
    assert loss is not None
    assert loss == pytest.approx(math.log(8), abs=0.05)


def test_a_clearly_better_model_is_found_better() -> None:
    good, poor = trained(1, 60, order), trained(1, 15, order)
    text = "abcdefgh" * 2500
    first, second = compare([good, poor], text), compare([poor, good], text)
    assert (first.pairs[0].verdict, second.pairs[0].verdict) == ("A is better", "B is better")
    assert first.pairs[0].sentence == second.pairs[0].sentence.replace("B is better than A", "A is better than B")
    value, low, high = ends(first)
    assert low <= value <= high < 0


# ---------------------------------------------------------------- one tokenizer
def test_figures_are_those_of_evaluate_text_on_the_shortest_context() -> None:
    subjects = [subject("long", 1, block_size=64), subject("short", 2, block_size=24), subject("other", 3)]
    result = compare(subjects, TEXT, max_tokens=None, draws=200)
    for given, found in zip(subjects, result.models, strict=True):
        expected = evaluate_text(opened(given), BYTES, TEXT, block_size=24)
        assert (found.loss, found.ppl, found.bpb, found.tokens) == (
            expected.loss, expected.ppl, expected.bpb, expected.tokens,
        )  # fmt: skip
        assert found.block_size == 24
    for i, pair in enumerate(result.pairs, 1):
        loss = [m.loss for m in result.models]
        assert ends(result, pair=i - 1)[0] == pytest.approx(loss[0] - loss[i], abs=1e-5)
        assert pair.letter == "ABCD"[i]
    assert result.text_rule == "the whole text"
    assert "A could read 64" in result.window_rule
    assert "B could read" not in result.window_rule
    assert result.sha256 == result.scores[2].windows_sha256


def test_part_of_a_long_text_is_spread_over_it() -> None:
    result = compare([subject("a", 1), subject("b", 2)], TEXT, max_tokens=4000, draws=200)
    assert result.tokens == 4000
    assert result.scores[0].ends[-1] > 0.9 * len(TEXT.encode())
    assert "spread" in result.text_rule
    assert "spread" not in compare([subject("a", 1), subject("b", 2)], TEXT, draws=200).text_rule


def test_rare_tokens_and_the_last_quarter_are_what_they_say() -> None:
    result = compare([subject("a", 1), subject("b", 2)], TEXT, draws=200)
    a, b = result.scores
    counts = np.bincount(a.ids)
    limit = max(n for n in counts if n and counts[(counts <= n)].sum() <= 0.10 * len(a.ids))
    rare, late = counts[a.ids] <= limit, a.places >= 24
    assert f"at most {limit}".replace(",", "") in str(result.rare_rule).replace("\u202f", "")
    for name, keep in (("rare", rare), ("late", late)):
        assert getattr(result.models[1], name) == pytest.approx(b.nats[keep].mean())
        assert ends(result, name)[0] == pytest.approx((a.nats - b.nats)[keep].mean())
    assert 0.2 < late.mean() < 0.3


def test_blocks_are_whole_windows_of_at_least_512_bytes() -> None:
    result = compare([subject("a", 1), subject("b", 2)], TEXT, draws=200)
    assert result.blocks == math.ceil(math.ceil((len(TEXT.encode()) - 1) / 32) / 16)
    assert "16" in result.block_rule
    assert result.bytes == len(TEXT.encode()) - 1


def test_few_blocks_are_warned_of_and_too_few_refused() -> None:
    subjects = [subject("a", 1), subject("b", 2)]
    assert not compare(subjects, TEXT * 4, draws=200).warnings
    (warning,) = compare(subjects, TEXT[:6000], draws=200).warnings
    assert "below 30 the interval is unreliable" in warning
    with pytest.raises(DataError, match=r"gives 5.blocks.*at least 6; use a longer text"):
        compare(subjects, TEXT[:1800], draws=200)


# ---------------------------------------------------------------- several tokenizers
def test_models_of_other_tokenizers_are_compared_over_the_same_bytes() -> None:
    subjects = [subject("bpe", 1, BPE), subject("byte", 2), subject("char", 3, CHARS)]
    result = compare(subjects, TEXT, draws=500)
    assert not result.same_tokenizer
    assert result.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert result.data == TEXT.encode()
    for given, found, score in zip(subjects, result.models, result.scores, strict=True):
        assert (found.loss, found.ppl, found.rare, found.late) == (None,) * 4
        assert found.block_size <= opened(given).config.block_size
        whole = evaluate_text(opened(given), given.tokenizer, TEXT, block_size=found.block_size)
        assert score.evaluation == whole
        assert found.bpb == pytest.approx(whole.bpb, rel=2e-3)  # but for some bytes at the start
    widths = [found.context_bytes for found in result.models]
    assert max(widths) < 1.3 * min(widths)
    assert len(TEXT.encode()) - 20 < result.bytes < len(TEXT.encode())
    for i in (1, 2):
        bpb = [m.bpb for m in result.models]
        assert ends(result, "bpb", i - 1)[0] == pytest.approx(bpb[0] - bpb[i], abs=1e-12)


def test_blocks_of_bytes_hold_exactly_the_tokens_between_their_ends() -> None:
    from dgsgpt.evaluation.scores import byte_blocks

    result = compare([subject("bpe", 1, BPE), subject("byte", 2)], TEXT, draws=200)
    blocks = byte_blocks(result.scores)
    assert blocks.count == result.blocks
    for number, score in zip(blocks.of, result.scores, strict=True):
        size = np.bincount(number[number >= 0], weights=(score.ends - score.begins)[number >= 0])
        assert np.array_equal(size, blocks.bytes)


def test_of_a_long_text_other_tokenizers_read_the_same_beginning() -> None:
    result = compare([subject("bpe", 1, BPE), subject("byte", 2)], TEXT * 3, max_tokens=3000, draws=200)
    assert result.models[0].tokens <= 3000
    assert result.data == (TEXT * 3).encode()[: len(result.data)]
    assert result.scores[1].data == result.data
    assert "beginning" in result.text_rule


class Lossy(CharTokenizer):
    """Gives a text back in small letters."""

    def encode_array(self, text: str) -> Any:
        return super().encode_array(text.lower())

    def vocab(self) -> dict[str, Any]:
        return {**super().vocab(), "lossy": True}


def test_a_tokenizer_that_changes_the_text_is_refused_beside_another() -> None:
    lossy = Lossy("".join(sorted(set(TEXT.lower()))))
    text = TEXT.replace("words", "Words")
    with pytest.raises(DataError, match="b: its tokenizer does not give this text back byte for byte as that of a"):
        compare([subject("a"), subject("b", 1, lossy)], text)


# ---------------------------------------------------------------- colouring
@pytest.mark.parametrize("others", [(BYTES, BYTES), (BPE, BPE), (BPE, CHARS), (CHARS, BYTES)])
@pytest.mark.parametrize("max_tokens", [None, 4000])
def test_spans_are_whole_characters_in_order_that_add_up(
    others: tuple[Tokenizer, Tokenizer], max_tokens: int | None
) -> None:
    result = compare([subject("a", 1, others[0]), subject("b", 2, others[1])], TEXT, max_tokens=max_tokens, draws=200)
    found = spans(result, 0, 1)
    assert all(x.end_byte <= y.start_byte for x, y in pairwise(found))
    pieces = [result.data[span.start_byte : span.end_byte] for span in found]
    whole = [p.decode("utf-8") for p in pieces if p.decode("utf-8", "ignore").encode() == p]
    gaps = sum(x.end_byte != y.start_byte for x, y in pairwise(found))
    assert len(pieces) - len(whole) <= 2 * gaps + 2  # a window may begin or end inside a character
    for name, score in (("nats_a", result.scores[0]), ("nats_b", result.scores[1])):
        total = sum(getattr(span, name) for span in found)
        assert total <= score.nats.sum() + 1e-6
        assert total == pytest.approx(score.nats.sum(), rel=0.01)
    for span in found[:: len(found) // 20]:
        for value, score in ((span.nats_a, result.scores[0]), (span.nats_b, result.scores[1])):
            inside = (score.begins >= span.start_byte) & (score.ends <= span.end_byte)
            assert value == pytest.approx(score.nats[inside].sum())


def test_spans_of_any_two_can_be_had() -> None:
    result = compare([subject("a", 1), subject("b", 2, CHARS), subject("c", 3)], TEXT, draws=200)
    forward, backward = spans(result, 1, 2), spans(result, 2, 1)
    assert [(s.nats_a, s.nats_b) for s in forward] == [(s.nats_b, s.nats_a) for s in backward]


# ---------------------------------------------------------------- running
def test_models_are_open_one_at_a_time_and_progress_covers_all() -> None:
    log: list[str] = []
    seen: list[tuple[int, int]] = []

    def lazily(given: Subject) -> Subject:
        @contextmanager
        def once() -> Any:
            log.append(f"open {given.name}")
            yield opened(given)
            log.append(f"close {given.name}")

        return Subject(given.name, given.tokenizer, given.block_size, once)

    names = [lazily(subject("a", 1)), lazily(subject("b", 2, CHARS))]
    compare(names, TEXT, draws=200, on_batch=lambda *done: seen.append(done))
    assert log == ["open a", "close a", "open b", "close b"]
    total = len(TEXT.encode()) + len(TEXT) - 2
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_results_are_plain_json_with_everything_that_must_be_said() -> None:
    result = compare([subject("a", 1), subject("b", 2)], TEXT, draws=200)
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain["models"][1]["name"] == "b"
    assert plain["pairs"][0]["differences"]["loss"]["value"] == ends(result)[0]
    assert plain["sha256"] == result.sha256
    assert "another seed" in plain["caveat"]
    assert "scores" not in plain
    assert (plain["draws"], plain["seed"]) == (200, 0)


def test_what_cannot_be_compared_is_told_in_a_line() -> None:
    a, b = subject("a", 1), subject("b", 2)
    for count in (1, 5):
        with pytest.raises(DataError, match=f"{count} models cannot be compared; give 2 to 4"):
            compare([a] * count, TEXT)
    with pytest.raises(DataError, match=r"a: the text has 0 tokens"):
        compare([a, b], "")
    with pytest.raises(DataError, match=r"b: characters that the char tokenizer does not know: 'z'"):
        compare([a, subject("b", 1, CharTokenizer("abc"))], "abz" * 900)
    with pytest.raises(DataError, match=r"b: the text has token id 2\d\d, but the model knows 200"):
        compare([a, subject("b", 1, vocab_size=200)], TEXT)
    with pytest.raises(DataError, match="max_tokens=0"):
        compare([a, b], TEXT, max_tokens=0)
    broken = subject("broken")
    with torch.no_grad():
        next(opened(broken).parameters()).fill_(torch.nan)
    with pytest.raises(DataError, match="broken: its predictions are not numbers"):
        compare([a, broken], TEXT)


# ---------------------------------------------------------------- the command
@pytest.fixture
def runs(runs_dir: Path, tmp_path: Path) -> Path:
    from tests import checkpoint_factory

    config = build_config(
        {
            "data": {"corpus": str(tmp_path / "text.txt"), "tokenizer": {"kind": "byte"}},
            "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32},
        }
    )
    (tmp_path / "text.txt").write_text(TEXT * 10, encoding="utf-8")
    for name, step in (("one", 10), ("two", 20)):
        checkpoint_factory.save(create_run(runs_dir, config, name), step)
    return runs_dir


def test_the_command_prints_a_table_and_the_same_figures_each_time(runs: Path) -> None:
    asked = ["one", "two@20", "--runs-dir", str(runs), "--max-tokens", "5000"]
    first, second = (CliRunner().invoke(command, [*asked, "--json"], catch_exceptions=False) for _ in range(2))
    assert first.output == second.output
    found = json.loads(first.output)
    assert [model["name"] for model in found["models"]] == ["one", "two@20"]
    assert "validation split" in found["text"]
    shown = CliRunner().invoke(command, asked, catch_exceptions=False).output
    for said in ("A − B", "bits/byte", "95 % interval", found["sha256"], found["pairs"][0]["sentence"], "another seed"):
        assert said in shown


def test_the_command_takes_a_file_and_refuses_what_it_cannot_compare(runs: Path, tmp_path: Path) -> None:
    where = ["--runs-dir", str(runs)]
    same = CliRunner().invoke(command, ["one", "one", "--text", str(tmp_path / "text.txt"), *where])
    assert "identical" in same.output
    one = CliRunner().invoke(command, ["one", *where])
    assert (one.exit_code, "give 2 to 4 checkpoints, not 1" in one.output) == (2, True)
    both = CliRunner().invoke(command, ["one", "two", "--text", "a", "--corpus", "austen", *where])
    assert "exclude each other" in both.output
    with pytest.raises(CheckpointError, match="no checkpoint 'three'"):
        CliRunner().invoke(command, ["one", "three", *where], catch_exceptions=False)


def test_models_are_judged_on_what_none_of_them_was_trained_on() -> None:
    def config(corpus: str, fraction: float) -> Any:
        return build_config({"data": {"corpus": corpus, "val_fraction": fraction}})

    given = [config("austen", 0.2), config("austen", 0.05), config("plays", 0.01)]
    assert unseen_fraction("austen", [c.data for c in given]) == 0.05
    assert unseen_fraction("other.txt", [c.data for c in given]) == 0.2
    (note,) = training_notes("austen", given)
    assert note.startswith("A, B learned from the training part of austen, C from another text")
    assert training_notes("austen", given[:2]) == training_notes("other.txt", given) == []
