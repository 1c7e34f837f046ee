"""Faster kernels are believed only after they have agreed with the reference."""

from functools import partial

import pytest
import torch
from torch import Tensor

from dgsgpt.model.attention import attend_window
from dgsgpt.model.fast_attention import BACKENDS, BLOCKED, Backend, _flex_mask, choose, use_fast_windows
from tests.model.tiny import random_tokens, tiny_model

CPU = torch.device("cpu")


def right(window: int) -> partial[Tensor]:
    return partial(attend_window, window=window)


def one_too_many(window: int) -> partial[Tensor]:
    return partial(attend_window, window=window + 1)


def wrong_gradient(window: int) -> object:
    def attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
        return attend_window(q, k.detach() + 0 * k, v, starts, window=window)

    return attend


def broken(window: int) -> object:
    def attend(*tensors: Tensor) -> Tensor:
        raise RuntimeError("no kernel image\nlong story")

    return attend


def works(device: torch.device, dtype: torch.dtype) -> None:
    return None


def candidate(name: str, build: object) -> Backend:
    return Backend(name, build, works)  # type: ignore[arg-type]


def test_the_first_candidate_that_agrees_is_taken() -> None:
    candidates = (candidate("broken", broken), candidate("good", right), candidate("never", broken))
    choice = choose(CPU, torch.float32, 16, 2, candidates)
    assert choice.backend.name == "good"
    assert choice.passed_over == {"broken": "no kernel image"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_window_of_one_too_many_and_a_wrong_gradient_are_found_out(dtype: torch.dtype) -> None:
    candidates = (candidate("wide", one_too_many), candidate("gradient", wrong_gradient))
    choice = choose(CPU, dtype, 16, 2, candidates)
    assert choice.backend is BLOCKED
    assert choice.passed_over["wide"].startswith("its result is off by")
    assert choice.passed_over["gradient"].startswith("its dk is off by")


def test_a_cpu_keeps_blocked_attention_and_says_why() -> None:
    model = tiny_model(window={"size": 8, "pattern": "SLB"})
    tokens = random_tokens()
    before = model(tokens).logits
    choice = use_fast_windows(model, CPU, torch.float32)
    assert choice.backend is BLOCKED
    assert choice.passed_over == {"varlen": "it needs a GPU", "flex": "it has no backward pass on CPUs"}
    torch.testing.assert_close(model(tokens).logits, before)


def test_only_sliding_heads_are_replaced() -> None:
    model = tiny_model(window={"size": 8, "pattern": "SLB"})
    before = [list(block.attn.attends) for block in model.blocks]
    use_fast_windows(model, CPU, torch.float32)
    changed = [
        [new is not old for new, old in zip(block.attn.attends, was, strict=True)]
        for block, was in zip(model.blocks, before, strict=True)
    ]
    assert changed == [[True], [False], [True, False]]


@pytest.mark.parametrize(("window", "length"), [(1, 130), (7, 200), (128, 300), (200, 200)])
def test_flex_sees_the_same_tokens(window: int, length: int) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, length, 16, generator=g) for heads in (4, 2, 2))
    actual = flex_attention(q, k, v, block_mask=_flex_mask(window, length, CPU), enable_gqa=True)
    torch.testing.assert_close(actual, attend_window(q, k, v, window=window), atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("group", [1, 4])
def test_gpu_backends_agree_with_the_reference(backend: Backend, group: int) -> None:
    choice = choose(torch.device("cuda"), torch.bfloat16, 64, group, (backend,))
    if "unexpected keyword" in choice.passed_over.get(backend.name, ""):
        pytest.skip(f"torch {torch.__version__} has no windows in {backend.name}: {choice.passed_over}")
    assert choice.backend is backend, choice.passed_over
