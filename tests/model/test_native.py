"""Compiled code for single tokens gives what torch's operators give, and these take its place where they must."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.errors import DgsgptError
from dgsgpt.generation import stream
from dgsgpt.generation.context import Context
from dgsgpt.model import GPT, native
from dgsgpt.model.native import native_step
from tests.model.tiny import VARIANTS, random_tokens, tiny_model

compiled = pytest.mark.skipif(native.load().code is None, reason="no C compiler here")
ENDLESS: dict[str, Any] = {"window": {"size": 6, "pattern": "S"}, "block_size": 16}


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is compiled yet, and nothing stays."""
    native.load.cache_clear()
    yield
    native.load.cache_clear()


def read_both(model: GPT, tokens: Tensor, prompt: int, room: int | None) -> tuple[Tensor, Tensor]:
    """Logits [T, V] of single tokens after a prompt, by compiled code and by torch; also what their caches hold."""
    caches = [model.make_cache(1, room) for _ in range(2)]
    found: list[list[Tensor]] = [[], []]
    with torch.inference_mode():
        for cache in caches:
            model(tokens[:, :prompt], cache=cache)
        step = native_step(model, caches[0])
        assert step is not None
        for at in range(prompt, tokens.size(1)):
            found[0].append(step(int(tokens[0, at])))
            found[1].append(model(tokens[:, at : at + 1], cache=caches[1]).logits[0, 0])
    assert caches[0].length == caches[1].length == tokens.size(1)
    for one, other in zip(caches[0].buffers(), caches[1].buffers(), strict=True):
        torch.testing.assert_close((one.k, one.v), (other.k, other.v), atol=1e-5, rtol=1e-4)
    return torch.stack(found[0]), torch.stack(found[1])


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgsgpt.generation.context.native_step", lambda model, cache: None)


@compiled
@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_network_has_the_same_logits_and_cache(name: str) -> None:
    actual, expected = read_both(tiny_model(**VARIANTS[name]).eval(), random_tokens(batch=1, length=30), 5, 48)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@compiled
@given(
    heads=st.sampled_from([(1, 1), (2, 1), (4, 4), (4, 2), (6, 2)]), size=st.sampled_from([2, 6, 8, 20]),
    window=st.integers(1, 20), pattern=st.sampled_from(["S", "SL", "LS"]), prompt=st.integers(1, 24),
    mlp=st.sampled_from(["gelu", "relu", "relu2", "swiglu"]), norm=st.sampled_from(["rmsnorm", "layernorm"]),
    flags=st.tuples(*[st.booleans()] * 4),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_whatever_is_combined_it_is_the_same(
    heads: tuple[int, int],
    size: int,
    window: int,
    pattern: str,
    prompt: int,
    mlp: str,
    norm: str,
    flags: tuple[bool, ...],
) -> None:
    model = tiny_model(
        n_layer=2, n_head=heads[0], n_kv_head=heads[1], head_size=size, window={"size": window, "pattern": pattern},
        mlp=mlp, norm=norm, mlp_hidden=23, bias=flags[0], qk_norm=flags[1], tie_embeddings=flags[2],
        rope={} if flags[3] else None,
    ).eval()  # fmt: skip
    actual, expected = read_both(model, random_tokens(batch=1, length=prompt + 20), prompt, 48)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@compiled
def test_rings_turn_and_positions_grow_without_end() -> None:
    actual, expected = read_both(tiny_model(**ENDLESS).eval(), random_tokens(batch=1, length=300), 9, None)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@compiled
def test_scores_of_any_size_are_weighed_as_torch_weighs_them() -> None:
    model: Any = tiny_model(rope=None, positions="none").eval()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.q.weight.mul_(300.0)
    actual, expected = read_both(model, random_tokens(batch=1, length=20), 4, 48)
    torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)


@compiled
@pytest.mark.parametrize("changes", [{"block_size": 16}, ENDLESS], ids=["begins anew", "endless"])
def test_texts_are_those_that_torch_writes(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=256, **changes).eval()
    asked: dict[str, Any] = {"max_new_tokens": 60, "seed": 3}
    outs = []
    for computed in ("compiled", "torch"):
        if computed == "torch":
            by_torch(monkeypatch)
        for temperature in (0.0, 0.9):
            out = stream(model, ByteTokenizer(), "Once", temperature=temperature, **asked)
            text = "".join(out)
            rest = stream(model, ByteTokenizer(), "Once", written=out.stats.ids[:30], temperature=temperature, **asked)
            list(rest)
            assert rest.stats.ids[:30] == out.stats.ids[30:]
            outs.append((text, out.stats.ids))
    assert outs[:2] == outs[2:]


@compiled
def test_after_the_prompt_torch_computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=256).eval()
    lengths: list[int] = []
    own = GPT.forward

    def spied(self: GPT, tokens: Tensor, **given: Any) -> Any:
        lengths.append(tokens.size(1))
        return own(self, tokens, **given)

    monkeypatch.setattr(GPT, "forward", spied)
    "".join(stream(model, ByteTokenizer(), "Once", max_new_tokens=9, seed=1))
    assert lengths == [4]


@pytest.mark.parametrize(
    "why", ["bfloat16", "double", "autocast", "training", "rows", "subclass", "large", "other layer"]
)
def test_torch_computes_what_compiled_code_cannot(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model().eval()
    if why in ("bfloat16", "double"):
        model.to(getattr(torch, why))
    if why == "training":
        model.train()
    if why == "subclass":
        model.blocks[1].mlp.up.weight = torch.nn.Parameter(
            torch.zeros(88, 32).as_subclass(type("Other", (torch.Tensor,), {}))
        )
    if why == "large":
        monkeypatch.setattr("dgsgpt.model.native._MOST_NUMBERS", 1000)
    if why == "other layer":
        model.blocks[2].attn.q = torch.nn.Sequential(model.blocks[2].attn.q)
    with torch.autocast("cpu", enabled=why == "autocast"):
        assert native_step(model, model.make_cache(2 if why == "rows" else 1, 16)) is None


@compiled
def test_a_large_output_layer_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(vocab_size=1000, n_embd=16).eval()
    monkeypatch.setattr("dgsgpt.model.native._MOST_NUMBERS", 10_000)
    actual, expected = read_both(model, random_tokens(batch=1, length=12), 4, 48)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


@compiled
def test_a_model_that_is_moved_goes_on_by_its_new_weights() -> None:
    model = tiny_model().eval()
    context = Context(model, [])
    context.read([1, 2, 3])
    with torch.no_grad():
        context.read([4])
        model.double().float()  # the memory is another one
        for p in model.parameters():
            p.mul_(0.5)
        found = context.read([5])
        cache = context._contexts._cache
        cache.length -= 1
        torch.testing.assert_close(found, model(torch.tensor([[5]]), cache=cache).logits[0, 0], atol=1e-5, rtol=1e-4)


@compiled
def test_logits_stay_while_reading_goes_on() -> None:
    context = Context(tiny_model().eval(), [])
    context.read([1, 2])
    kept = context.read([3])
    before = kept.clone()
    context.read([4])
    assert torch.equal(kept, before)


@compiled
def test_contexts_in_threads_do_not_meet() -> None:
    model = tiny_model(vocab_size=256).eval()
    asked = [("Once", 1), ("upon", 2), ("a time", 3)] * 2

    def write(order: tuple[str, int]) -> str:
        return "".join(stream(model, ByteTokenizer(), order[0], max_new_tokens=40, seed=order[1]))

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(write, asked)) == [write(order) for order in asked]


@compiled
def test_whoever_watches_the_model_is_told_of_single_tokens() -> None:
    model, seen = tiny_model(vocab_size=256).eval(), []
    with model.register_forward_pre_hook(lambda module, given: seen.append(given[0].tolist())):
        out = stream(model, ByteTokenizer(), "ab", max_new_tokens=3, seed=1)
        list(out)
    assert seen == [[[97, 98]], *([[token]] for token in out.stats.ids[:-1])]


@compiled
def test_weights_that_become_nan_are_told() -> None:
    model: Any = tiny_model(vocab_size=256).eval()
    out = stream(model, ByteTokenizer(), "Once", max_new_tokens=40, seed=1)
    next(out)
    with torch.no_grad():
        model.blocks[1].mlp.up.weight[3, 3] = torch.nan
    with pytest.raises(DgsgptError, match="not numbers"):
        list(out)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("fault", ["no compiler", "it fails", "it makes no library"])
def test_without_a_compiler_torch_computes_everything_and_the_reason_is_told(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = {"no compiler": None, "it fails": "false", "it makes no library": "true"}[fault]
    monkeypatch.setattr("dgsgpt.model.native.shutil.which", lambda name: command)
    model = tiny_model().eval()
    assert native_step(model, model.make_cache(1, 16)) is None
    reason = "no C compiler found" if command is None else f"{command} could not compile it"
    assert native.describe() == f"torch's operators ({reason})"


@compiled
def test_the_compiler_is_told() -> None:
    assert native.describe().startswith("compiled code (made by ")
