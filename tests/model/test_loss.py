"""The loss in chunks against the loss from all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.architecture import loss_chunk_rows
from dgsgpt.config import ModelConfig
from dgsgpt.model import GPT
from dgsgpt.model.loss import ChunkedCrossEntropy, chunked_cross_entropy, softcap
from tests.memory import LiveBytes


def problem(
    rows: int, width: int, vocab: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=g, requires_grad=True)
    weight = torch.randn(vocab, width, generator=g, requires_grad=True)
    bias = torch.randn(vocab, generator=g, requires_grad=True)
    targets = torch.randint(vocab, (rows,), generator=g)
    targets[torch.rand(rows, generator=g) < 0.2] = -100
    return x, weight, bias, targets


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, cap: float | None
) -> torch.Tensor:
    logits = x @ weight.T
    if bias is not None:
        logits = logits + bias
    if cap is not None:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")


@given(
    rows=st.integers(1, 50),
    chunk=st.integers(1, 60),
    cap=st.sampled_from([None, 3.0, 30.0]),
    own=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_chunked_loss_and_gradients_equal_the_plain_ones(
    rows: int, chunk: int, cap: float | None, own: bool, biased: bool, seed: int
) -> None:
    x, weight, given_bias, targets = problem(rows, 8, 37, seed)
    bias = given_bias if biased else None
    expected = reference(x, weight, bias, targets, cap)
    if own:
        actual = ChunkedCrossEntropy.apply(x, weight, bias, targets, chunk, cap)
    else:
        actual = chunked_cross_entropy(x, weight, targets, chunk, cap, bias)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-5)
    inputs = (x, weight, given_bias) if biased else (x, weight)
    ours, theirs = (torch.autograd.grad(0.3 * loss, inputs) for loss in (actual, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_chunks_in_half_precision_stay_close_to_full() -> None:
    x, weight, bias, targets = problem(200, 32, 500, seed=1)
    expected = reference(x, weight, bias, targets, None)
    wanted = torch.autograd.grad(expected, (x, weight, bias))
    actual = chunked_cross_entropy(x.bfloat16(), weight.bfloat16(), targets, 64, None, bias.bfloat16())
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(expected.item(), rel=2e-3)
    for a, b in zip(torch.autograd.grad(actual, (x, weight, bias)), wanted, strict=True):
        assert (a - b).norm() < 0.02 * b.norm()


def model_of(vocab: int, **changes: object) -> GPT:
    torch.manual_seed(0)
    return GPT(
        ModelConfig.model_validate(
            {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 128, "vocab_size": vocab, **changes}
        )
    )


@pytest.mark.parametrize(("tied", "biased"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("cap", [None, 5.0])
def test_a_model_with_a_large_vocabulary_learns_the_same_without_its_logits(
    tied: bool, biased: bool, cap: float | None
) -> None:
    model = model_of(20_000, tie_embeddings=tied, head_bias=biased, logit_softcap=cap)
    if biased:
        torch.nn.init.normal_(model.head.bias)
    tokens = torch.randint(20_000, (2, 128), generator=torch.Generator().manual_seed(0))
    out = model(tokens, tokens)
    assert out.logits is None
    expected = F.cross_entropy(model(tokens).logits.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(out.loss, expected, atol=1e-5, rtol=1e-5)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(loss, parameters) for loss in (out.loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_small_vocabulary_keeps_its_logits() -> None:
    model = model_of(300)
    tokens = torch.zeros(2, 128, dtype=torch.long)
    assert model(tokens, tokens).logits.shape == (2, 128, 300)


def test_chunks_never_hold_all_logits() -> None:
    model = model_of(20_000)
    tokens = torch.zeros(16, 128, dtype=torch.long)
    rows = loss_chunk_rows(model.config, tokens.numel(), "cpu")
    assert rows is not None
    whole = tokens.numel() * 20_000 * 4
    with LiveBytes() as live:
        model(tokens, tokens).loss.backward()
    # A chunk's logits and what becomes of them, and the embedding's gradients; all logits alone would be `whole`.
    assert live.peak < 4 * rows * 20_000 * 4 + 4 * 20_000 * 16 * 4 < whole
    with LiveBytes() as live, torch.no_grad():
        model(tokens, tokens)
    assert live.peak < 4 * rows * 20_000 * 4 < whole


def test_the_cap_bounds_logits_and_keeps_their_order() -> None:
    logits = torch.linspace(-100, 100, 21)
    capped = softcap(logits, 10.0)
    assert capped.abs().max() <= 10.0
    assert (capped.diff() >= 0).all()
    torch.testing.assert_close(softcap(logits / 1000, 10.0), logits / 1000, atol=1e-4, rtol=1e-3)
