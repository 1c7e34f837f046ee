"""Models with a window in every layer: text goes on exactly beyond the context, in memory that does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.data.alphabets import CharTokenizer
from dgsgpt.generation import choices_at, generate_batch, stream
from dgsgpt.generation.context import Contexts, context_limit
from dgsgpt.inspect.tokens import read_choices
from dgsgpt.model import GPT
from dgsgpt.model.rope import RotaryPositions
from tests.generation.test_engine import BeginTokenizer
from tests.model.tiny import random_tokens, tiny_config, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window of one": {"window": {"size": 1, "pattern": "S"}},
    "window of the whole context": {"window": {"size": 16, "pattern": "S"}},
    "n-grams": {"ngram": {"max_order": 4, "rows": 4000}},
    "shortcuts": {"value_residual": True, "x0_shortcut": True, "n_kv_head": 1},
    "yarn": {"rope": {"scaling": {"kind": "yarn", "factor": 4.0}}, "qk_norm": True},
    "no positions": {"rope": None, "positions": "none"},
    "experts": {"moe": {"n_expert": 4}},
}
LETTERS = CharTokenizer("".join(chr(ord("A") + i) for i in range(58)))
WINDOW = {"block_size": 16, "window": {"size": 6, "pattern": "S"}}
MODELS = {name: tiny_model(**{**WINDOW, **changes}).eval() for name, changes in KINDS.items()}


def uncached(model: GPT, ids: list[int]) -> torch.Tensor:
    """Logits [T, V] of one pass over a whole text, windows being masks."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize("name", KINDS)
def test_a_text_of_many_contexts_is_predicted_as_if_it_were_read_whole(name: str) -> None:
    model = MODELS[name]
    out = stream(model, LETTERS, "Once", max_new_tokens=90, temperature=1.0, seed=3)
    text = "".join(out)
    logits = uncached(model, LETTERS.encode("Once" + text))[3:-1, : LETTERS.vocab_size]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(out.stats.ids), reduction="none")
    torch.testing.assert_close(torch.tensor(out.stats.nats), expected, rtol=1e-4, atol=1e-4)


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=8), part=st.integers(1, 30))
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("name", ["plain", "n-grams", "shortcuts"])
def test_however_it_is_read_it_is_the_same(name: str, sizes: list[int], part: int) -> None:
    model, rows = MODELS[name], 2
    tokens = random_tokens(batch=rows, length=sum(sizes))
    contexts = Contexts(model, [], rows)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("dgsgpt.generation.context._PREFILL_TOKENS", part)
        found = [contexts.read(piece.tolist()) for piece in tokens.split(sizes, dim=1)]
        expected = model(tokens).logits[:, torch.tensor(sizes).cumsum(0) - 1]
    torch.testing.assert_close(torch.stack(found, dim=1), expected, atol=1e-4, rtol=1e-4)
    assert contexts.length == sum(sizes)


def test_rows_of_a_batch_go_on_as_alone() -> None:
    model, prompts = MODELS["n-grams"], ["A", "Once", "Once", "ThePromptThatIsCutBecauseItIsTooLong"]
    rules = {"max_new_tokens": 60, "temperature": 1.0}
    for one in generate_batch(model, LETTERS, prompts, batch_size=3, seed=5, **rules):
        alone = stream(model, LETTERS, prompts[one.prompt], seed=5 + one.row, **rules)
        assert "".join(alone) == one.text
        assert one.stats.nats == pytest.approx(alone.stats.nats, rel=1e-3, abs=1e-4)


def test_memory_is_that_of_the_windows_however_long_the_text() -> None:
    cache = MODELS["plain"].make_cache(1, None)
    size = cache.n_bytes
    assert size == 3 * 2 * 2 * 6 * 8 * 4  # layers, k and v, heads, window, width, bytes
    with torch.inference_mode():
        for _ in range(40):
            MODELS["plain"](random_tokens(batch=1, length=5), cache=cache)
    assert (cache.n_bytes, cache.length) == (size, 200)


def test_what_is_read_again_later_is_what_was_seen() -> None:
    model = MODELS["plain"]
    out = stream(model, LETTERS, "Once", max_new_tokens=50, temperature=1.0, seed=1)
    list(out)
    ids, nats = out.stats.ids, out.stats.nats
    (found,) = choices_at(model, LETTERS, "Once", ids, 40, [ids[40]])
    assert found == pytest.approx(torch.tensor(-nats[40]).exp().item(), rel=1e-4)
    told = [choice.nats for part in read_choices(model, LETTERS, "Once", ids) for choice in part]
    assert told == pytest.approx(nats, rel=1e-3, abs=1e-4)
    rest = stream(model, LETTERS, "Once", written=ids[:30], max_new_tokens=20, temperature=1.0, seed=1)
    assert "".join(rest)
    assert rest.stats.ids == ids[30:]


def test_a_token_before_every_text_is_read_once() -> None:
    model = tiny_model(**{**WINDOW, "vocab_size": 256}).eval()
    out = stream(model, BeginTokenizer(), "abc", max_new_tokens=40, temperature=1.0, seed=2)
    list(out)
    logits = uncached(model, [2, *b"abc", *out.stats.ids])[3:-1]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(out.stats.ids), reduction="none")
    torch.testing.assert_close(torch.tensor(out.stats.nats), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [{"window": None}, {"window": {"size": 6, "pattern": "SSL"}}, {"window": {"size": 6, "pattern": "B"}},
     {"rope": None}],
    ids=["no window", "a full layer", "full heads", "learned positions"],
)  # fmt: skip
def test_other_models_have_a_limit(changes: dict[str, Any]) -> None:
    model = tiny_model(**{**WINDOW, **changes})
    assert context_limit(model) == 16
    with pytest.raises(ValueError, match="max_tokens=None needs a window in every layer"):
        model.make_cache(1, None)


def test_far_positions_turn_by_the_same_angle_as_near_ones() -> None:
    # Scores depend on distances alone, also where float32 no longer tells neighbouring angles apart.
    config = tiny_config()
    assert config.rope is not None
    positions = RotaryPositions(config.rope, 64, 48)
    for start in (0, 1_000_000, 10_000_000):
        cos, sin = (x[:, 0, :32].double() for x in positions.rotation(torch.zeros(1, 9, 1), start))
        turned = torch.atan2(cos[8] * sin[0] - sin[8] * cos[0], cos[8] * cos[0] + sin[8] * sin[0])
        expected = 8 * 10_000.0 ** (-torch.arange(0, 64, 2).double() / 64)
        torch.testing.assert_close(torch.remainder(turned, 2 * torch.pi), torch.remainder(expected, 2 * torch.pi),
                                   atol=1e-5, rtol=0)  # fmt: skip
