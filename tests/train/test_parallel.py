import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dgsgpt.model import GPT
from dgsgpt.train import parallel
from dgsgpt.train.parallel import apply_gradient_checkpointing, compile_blocks
from tests.memory import LiveBytes
from tests.model.tiny import VARIANTS, random_tokens, tiny_model


def gradients(model: GPT, autocast: bool = False) -> list[torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(7)
    tokens = random_tokens()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(tokens, tokens.roll(-1, 1))
    (out.loss + out.aux_loss).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_equal_with_and_without_checkpointing(name: str, mode: Any, autocast: bool) -> None:
    model = tiny_model(**VARIANTS[name], dropout=0.2)
    expected = gradients(model, autocast)
    apply_gradient_checkpointing(model, mode)
    actual = gradients(model, autocast)
    assert len(actual) == len(expected) == len(list(model.parameters()))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_routing_is_not_recomputed(mode: Any) -> None:
    model = tiny_model(moe={"n_expert": 4})
    expected = gradients(model)
    apply_gradient_checkpointing(model, mode)
    tokens = random_tokens()
    torch.manual_seed(7)
    out = model(tokens, tokens.roll(-1, 1))

    class Reroute(TorchDispatchMode):
        """A kernel that would choose the worst experts, were it asked."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.topk.default:
                args = (-args[0], *args[1:])
            return func(*args, **(kwargs or {}))

    model.zero_grad()
    with Reroute():
        (out.loss + out.aux_loss).backward()
    for p, b in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, b, atol=1e-6, rtol=1e-5)


def kept_bytes(mode: Any) -> int:
    model = tiny_model(n_layer=6)
    apply_gradient_checkpointing(model, mode)
    with LiveBytes() as live:
        out = model(random_tokens(batch=8))
        kept = live.now
    assert out.logits is not None
    return kept


def test_checkpointing_keeps_less() -> None:
    assert kept_bytes("full") < 0.7 * kept_bytes("selective") < 0.7 * 0.8 * kept_bytes("none")


def test_checkpointing_and_compiling_change_no_name_in_the_state_dict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "compiler_problem", lambda device: None)
    model = tiny_model(**VARIANTS["all"])
    names = list(model.state_dict())
    apply_gradient_checkpointing(model, "full")
    assert compile_blocks(model) is None
    assert list(model.state_dict()) == names


def test_a_missing_compiler_is_told_and_leaves_the_blocks_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Any) -> Any:
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", fail)
    model = tiny_model()
    assert compile_blocks(model) == "torch.compile does not work on this cpu: no C++ compiler"
    assert all("forward" not in vars(block) for block in model.blocks)


def test_only_training_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake_compile(function: Any) -> Any:
        def compiled(*inputs: Any) -> Any:
            calls.append("compiled")
            return function(*inputs)

        return compiled

    monkeypatch.setattr(parallel, "compiler_problem", lambda device: None)
    monkeypatch.setattr(torch, "compile", fake_compile)
    model, tokens = tiny_model(), random_tokens()
    expected = model(tokens).logits
    compile_blocks(model)
    assert torch.equal(model(tokens).logits, expected)
    assert len(calls) == len(model.blocks)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected)
    model.eval()(tokens, cache=model.make_cache(2, 48))
    assert len(calls) == len(model.blocks)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mode"), [("all_new", "none"), ("moe", "selective")])
def test_compiled_blocks_have_the_same_gradients(name: str, mode: Any) -> None:
    model = tiny_model(**VARIANTS[name])
    expected = gradients(model)
    apply_gradient_checkpointing(model, mode)
    reason = compile_blocks(model)
    if reason is not None:
        pytest.skip(reason)
    for a, b in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_modes_replace_each_other() -> None:
    model = tiny_model()
    for mode in ("full", "selective", "full"):
        apply_gradient_checkpointing(model, mode)
    assert "forward" in vars(model.blocks[0])
    apply_gradient_checkpointing(model, "none")
    assert all("forward" not in vars(block) for block in model.blocks)


def test_a_copy_recomputes_its_own_blocks() -> None:
    model = tiny_model()
    apply_gradient_checkpointing(model, "full")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert twin(random_tokens()).logits.abs().sum() > 0
    assert len(gradients(twin)) == len(list(twin.parameters()))


def test_a_checkpointed_model_reads_with_a_cache() -> None:
    model = tiny_model().eval()
    apply_gradient_checkpointing(model, "selective")
    tokens = random_tokens()
    cache = model.make_cache(2, 48)
    with torch.no_grad():
        parts = [model(part, cache=cache).logits for part in tokens.split(11, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens).logits, atol=1e-5, rtol=1e-5)
