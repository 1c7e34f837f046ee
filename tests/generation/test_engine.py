"""Generation: the cache changes nothing, text comes in whole characters, every bad request is answered in a line."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from dgsgpt.config import build_config
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.bpe import BpeTokenizer, train_bpe
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.generation import generate, prepare_prompt, stream
from dgsgpt.model import GPT


def tiny(vocab_size: int = 256, block_size: int = 16, seed: int = 3, **model: Any) -> GPT:
    torch.manual_seed(seed)
    values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": block_size, "vocab_size": vocab_size, **model}
    gpt = GPT(
        build_config(
            {"data": {"tokenizer": {"kind": "byte"}}, "model": {**values, "vocab_size": max(256, vocab_size)}}
        ).model
    )
    with torch.no_grad():
        for p in gpt.parameters():
            p.add_(torch.randn_like(p) * 0.3)  # fresh weights all but repeat the last token
    return gpt.eval()


class Script:
    """A model that says given ids, one after the other, and counts how it is called; same interface as GPT."""

    def __init__(self, ids: list[int], vocab_size: int = 256, block_size: int = 16) -> None:
        self.config = build_config(
            {"data": {"tokenizer": {"kind": "byte"}}, "model": {"block_size": block_size, "vocab_size": vocab_size}}
        ).model
        self.ids, self.said, self.training = ids, 0, True
        self.read: list[list[int]] = []

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def make_cache(self, batch_size: int, max_tokens: int, dtype: Any = None) -> list[int]:
        return []

    def __call__(self, tokens: torch.Tensor, *, cache: list[int]) -> Any:
        cache += tokens[0].tolist()
        assert len(cache) <= self.config.block_size
        self.read.append(tokens[0].tolist())
        logits = torch.zeros(1, tokens.size(1), self.config.vocab_size or 0)
        logits[0, -1, self.ids[min(self.said, len(self.ids) - 1)]] = 50.0
        self.said += 1
        return type("Out", (), {"logits": logits})


def say(text: bytes | list[int], tokenizer: Tokenizer | None = None, **rules: Any) -> list[str]:
    tokenizer = tokenizer or ByteTokenizer()
    rules = {"max_new_tokens": len(text), "temperature": 0, **rules}
    return list(stream(Script(list(text), max(256, tokenizer.vocab_size)), tokenizer, "go", **rules))  # type: ignore[arg-type]


# ---------------------------------------------------------------- the cache
@pytest.mark.parametrize(
    "model",
    [{}, {"rope": None}, {"n_kv_head": 1}, {"window": {"size": 5, "pattern": "SL"}}, {"moe": {"n_expert": 4}}],
    ids=["rope", "learned positions", "multi-query", "window", "experts"],
)
def test_cached_generation_equals_uncached(model: dict[str, Any]) -> None:
    gpt, tokenizer = tiny(**model), CharTokenizer("".join(map(chr, range(32, 127))))
    prompt, size, new = "It was", 16, 40
    found = generate(gpt, tokenizer, prompt, max_new_tokens=new, temperature=0)
    ids = context = tokenizer.encode(prompt)
    written = []
    for _ in range(new):
        with torch.no_grad():
            token = int(gpt(torch.tensor([context])).logits[0, -1, : tokenizer.vocab_size].argmax())
        written.append(token)
        # The documented rule: a full context is re-anchored on its last half.
        context = [*context, token]
        if len(context) > size:
            context = [*ids, *written][-size // 2 :]
    assert found == tokenizer.decode(written)
    assert len(set(found)) > 3


def test_a_full_context_is_read_anew_from_its_last_half() -> None:
    script = Script(list(range(65, 91)), block_size=8)
    list(stream(script, ByteTokenizer(), "abc", max_new_tokens=10, temperature=0))  # type: ignore[arg-type]
    assert script.read[:6] == [[97, 98, 99], [65], [66], [67], [68], [69]]
    assert script.read[6] == [67, 68, 69, 70]
    assert script.read[7] == [71]


def test_a_context_of_one_token_still_writes() -> None:
    assert len(generate(tiny(block_size=1), CharTokenizer("abc"), "ab", max_new_tokens=5, seed=1)) == 5


def test_a_long_prompt_is_read_in_parts_to_the_same_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, tokenizer = tiny(block_size=64), CharTokenizer("".join(map(chr, range(32, 127))))
    rules = {"max_new_tokens": 20, "temperature": 0}
    whole = generate(gpt, tokenizer, "a long prompt, " * 4, **rules)
    monkeypatch.setattr("dgsgpt.generation.context._PREFILL_TOKENS", 7)
    assert generate(gpt, tokenizer, "a long prompt, " * 4, **rules) == whole


# ---------------------------------------------------------------- seeds and vocabulary
def test_equal_seeds_write_equal_texts_and_leave_the_global_generator_alone() -> None:
    gpt, tokenizer = tiny(), CharTokenizer("abcdefgh")
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = (generate(gpt, tokenizer, "a", max_new_tokens=30, temperature=1.0, seed=s) for s in (1, 1, 2))
    assert a == b != c
    assert torch.equal(before, torch.get_rng_state())


def test_a_drawn_seed_is_told_and_repeats_the_text() -> None:
    gpt, tokenizer = tiny(), CharTokenizer("abcdefgh")
    first = stream(gpt, tokenizer, "a", max_new_tokens=20, temperature=1.0)
    text = "".join(first)
    assert generate(gpt, tokenizer, "a", max_new_tokens=20, temperature=1.0, seed=first.stats.seed) == text


def test_ids_the_tokenizer_does_not_have_are_never_drawn() -> None:
    text = generate(tiny(vocab_size=256), CharTokenizer("ab"), "a", max_new_tokens=200, temperature=100.0, seed=0)
    assert set(text) == {"a", "b"}
    assert len(text) == 200


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(DgsgptError, match="has 400 tokens but the model only 256"):
        stream(tiny(), CharTokenizer("".join(map(chr, range(1000, 1400)))), "Ϩ")


# ---------------------------------------------------------------- text
def test_pieces_are_whole_characters() -> None:
    text = "naïve 日本 🙂 end"
    pieces = say(text.encode())
    assert pieces == list(text)


def test_a_cut_character_at_the_end_is_dropped() -> None:
    assert "".join(say("日本".encode()[:-1])) == "日"


def test_bytes_that_are_no_text_become_replacement_characters() -> None:
    assert "".join(say(b"a\xffb")) == "a\ufffdb"


def test_pieces_join_to_what_decode_gives() -> None:
    tokenizer = train_bpe("日本語 naïve 🙂🙃 text " * 30, 300)
    ids = torch.randint(0, tokenizer.vocab_size - 1, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    joined = "".join(say(ids, tokenizer))
    assert tokenizer.decode(ids).startswith(joined)
    assert len(tokenizer.decode(ids)) - len(joined) <= 1


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("\n", "one"),
        ("two", "one\n"),
        (["xyz", "e\nt"], "on"),
        ("never", "one\ntwo"),
        ("twofold", "one\ntwo"),
        ("o", ""),
    ],
)
def test_writing_ends_before_a_stop_text(stop: str | list[str], expected: str) -> None:
    pieces = say(b"one\ntwo", stop=stop)
    assert "".join(pieces) == expected
    assert "" not in pieces


def test_an_end_of_text_token_ends_the_text() -> None:
    tokenizer = BpeTokenizer([("a", "b")])
    assert tokenizer.end_of_text == 257
    script = Script([tokenizer.encode("a")[0], 257, tokenizer.encode("b")[0]], vocab_size=258)
    out = stream(script, tokenizer, "x", max_new_tokens=9, temperature=0)  # type: ignore[arg-type]
    assert "".join(out) == "a"
    assert out.stats.finish_reason == "end_of_text"


# ---------------------------------------------------------------- prompts
def test_an_empty_prompt_starts_from_end_of_text_or_is_refused() -> None:
    tokenizer = BpeTokenizer([("a", "b")])
    assert prepare_prompt(tokenizer, "", 8).ids == [257]
    for other in (ByteTokenizer(), CharTokenizer("ab")):
        with pytest.raises(DgsgptError, match="prompt is empty"):
            generate(tiny(), other, "")


def test_a_long_prompt_keeps_its_end_and_says_how_much_is_gone() -> None:
    prompt = prepare_prompt(ByteTokenizer(), "abcdefghij", 8)
    assert bytes(prompt.ids) == b"defghij"
    assert prompt.cropped == 3
    assert prepare_prompt(ByteTokenizer(), "abcdefg", 8).cropped == 0
    out = stream(tiny(block_size=8), ByteTokenizer(), "abcdefghij", max_new_tokens=1)
    assert (out.stats.cropped, out.stats.prompt_tokens) == (3, 7)


def test_unknown_characters_are_listed_before_anything_is_written() -> None:
    with pytest.raises(DataError, match="'é', '!'"):
        stream(tiny(), CharTokenizer("abc"), "aébc!")


@pytest.mark.timeout(300)
def test_a_prompt_of_a_million_characters_is_answered() -> None:
    out = stream(tiny(), ByteTokenizer(), "word " * 200_000, max_new_tokens=3)
    list(out)
    assert out.stats.cropped == 1_000_000 - 15


@pytest.mark.parametrize("text", ["word " * 200_000, "a" * 1_000_000, " " * 1_000_000])
def test_every_tokenizer_reads_a_prompt_of_a_million_characters(text: str) -> None:
    for tokenizer in (train_bpe("a word or two " * 30, 280), CharTokenizer(" adorw"), ByteTokenizer()):
        prompt = prepare_prompt(tokenizer, text, 64)
        assert len(prompt.ids) == 63
        assert prompt.ids == tokenizer.encode(text)[-63:]
        assert prompt.cropped > 100_000


def test_a_wrong_setting_is_refused_at_once() -> None:
    with pytest.raises(DgsgptError, match="top_q"):
        stream(tiny(), ByteTokenizer(), "a", top_q=1)
    with pytest.raises(DgsgptError, match=r"top_p=2"):
        stream(tiny(), ByteTokenizer(), "a", top_p=2)


def test_damaged_weights_are_told() -> None:
    gpt = tiny()
    with torch.no_grad():
        next(gpt.parameters()).fill_(torch.nan)
    with pytest.raises(DgsgptError, match="not numbers"):
        generate(gpt, ByteTokenizer(), "a")


class BeginTokenizer(ByteTokenizer):
    """Bytes for a model that expects byte 2 before every text, and ends one by 3 or 4."""

    begin_of_text = 2  # type: ignore[assignment]
    ends_of_text = (3, 4)  # type: ignore[assignment]


def test_a_token_before_every_text_is_read_first_and_again_whenever_the_context_begins_anew() -> None:
    assert prepare_prompt(BeginTokenizer(), "abc", 8).ids == [2, *b"abc"]
    assert prepare_prompt(BeginTokenizer(), "", 8).ids == [2]
    long = prepare_prompt(BeginTokenizer(), "abcdefghij", 8)
    assert (long.ids, long.cropped) == ([2, *b"efghij"], 4)
    assert prepare_prompt(BeginTokenizer(), "abc", 2).ids == [*b"c"]
    script = Script(list(range(65, 91)), block_size=8)
    list(stream(script, BeginTokenizer(), "abc", max_new_tokens=10, temperature=0))  # type: ignore[arg-type]
    assert script.read[0] == [2, 97, 98, 99]
    assert script.read[5] == [2, 66, 67, 68, 69]


def test_any_token_that_ends_a_text_ends_it() -> None:
    for end in (3, 4):
        out = stream(Script([65, end, 66]), BeginTokenizer(), "x", max_new_tokens=9, temperature=0)  # type: ignore[arg-type]
        assert "".join(out) == "A"
        assert (out.stats.finish_reason, out.stats.ids) == ("end_of_text", [65, end])


# ---------------------------------------------------------------- running
def test_closing_stops_at_once_and_restores_the_mode() -> None:
    script = Script([65], block_size=1000)
    out = stream(script, ByteTokenizer(), "a", max_new_tokens=900)  # type: ignore[arg-type]
    assert script.training
    assert next(out) == "A"
    assert not script.training
    out.close()
    assert (script.said, script.training, out.stats.finish_reason) == (1, True, "closed")
    assert list(out) == []


def test_stats_tell_what_happened() -> None:
    with stream(tiny(), ByteTokenizer(), "abc", max_new_tokens=12, seed=9) as out:
        began = time.perf_counter()
        list(out)
    stats = out.stats
    assert (stats.tokens, stats.prompt_tokens, stats.cropped, stats.seed) == (12, 3, 0, 9)
    assert stats.finish_reason == "length"
    assert stats.first_token_s is not None
    assert 0 < stats.first_token_s <= stats.seconds <= time.perf_counter() - began
    assert stats.tokens_per_s == pytest.approx(12 / stats.seconds)


def test_stats_keep_the_tokens_and_what_each_cost_the_model() -> None:
    gpt, tokenizer = tiny(block_size=64), CharTokenizer("abcdefgh")
    out = stream(gpt, tokenizer, "ab", max_new_tokens=20, temperature=0.5, top_k=3, seed=4)
    text = "".join(out)
    ids = out.stats.ids
    assert tokenizer.decode(ids) == text
    with torch.no_grad():
        logits = gpt(torch.tensor([tokenizer.encode("ab") + ids])).logits[0, 1:-1, :8].double()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="none")
    torch.testing.assert_close(torch.tensor(out.stats.nats, dtype=torch.float64), expected, rtol=1e-4, atol=1e-5)


def test_a_slow_reader_does_not_count_as_a_slow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("dgsgpt.generation.engine.time.perf_counter", lambda: clock[0])
    out = stream(Script([65]), ByteTokenizer(), "a", max_new_tokens=5, temperature=0)  # type: ignore[arg-type]
    for _ in out:
        clock[0] += 10.0
    assert out.stats.seconds == 0.0
    assert out.stats.tokens == 5


def test_the_caller_is_not_left_in_inference_mode() -> None:
    for _ in stream(tiny(), CharTokenizer("ab"), "a", max_new_tokens=3):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()


def test_training_goes_on_after_a_sample() -> None:
    gpt = tiny().train()
    generate(gpt, ByteTokenizer(), "abc", max_new_tokens=20)
    assert gpt.training
    loss = gpt(torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4, dtype=torch.long)).loss
    loss.backward()
    assert all(p.grad is not None for p in gpt.parameters())
