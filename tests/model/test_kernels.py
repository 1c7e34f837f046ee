"""Kernels for single rows: they give what torch's operators give, and these take their place where they must."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from dgsgpt.model import kernels
from dgsgpt.model.linear import Linear
from dgsgpt.model.norm import RMSNorm
from tests.model.tiny import VARIANTS, random_tokens, tiny_model


@pytest.fixture
def fresh() -> Iterator[None]:
    """No kernel is compiled yet, and none stays."""
    kernels.load.cache_clear()
    yield
    kernels.load.cache_clear()


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of torch's operators are used."""
    used: list[str] = []
    for name in ("linear", "rms_norm"):
        own = getattr(F, name)
        monkeypatch.setattr(F, name, lambda *args, _own=own, _name=name: used.append(_name) or _own(*args))
    return used


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (64, 33), (7, 1000)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_row_times_a_matrix_is_what_torch_gives(rows: int, columns: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(columns, rows, bias=bias), torch.randn(1, 1, columns)
    with torch.inference_mode():
        actual = layer(x)
    torch.testing.assert_close(actual, F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 5), (2, 3, 4, 48), (0, 7)])
def test_a_norm_is_what_torch_gives(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm, x = RMSNorm(shape[-1], 1e-5), torch.randn(shape)
    norm.weight.data.normal_()
    with torch.inference_mode():
        actual = norm(x)
    torch.testing.assert_close(actual, F.rms_norm(x, norm.weight.shape, norm.weight, 1e-5), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["gqa", "relu2", "head_bias", "qkv_bias", "all_new", "original"])
def test_a_text_read_token_by_token_has_the_same_logits_with_kernels_and_without(name: str) -> None:
    model, tokens = tiny_model(**VARIANTS[name]).eval(), random_tokens(batch=1, length=20)
    found = []
    for mode in (torch.inference_mode, torch.no_grad):  # kernels are for the first
        cache = model.make_cache(1, 20)
        with mode():
            found.append(torch.cat([model(token, cache=cache).logits for token in tokens.split(1, dim=1)], dim=1))
    torch.testing.assert_close(found[0].clone(), found[1], atol=1e-5, rtol=1e-5)


def test_single_rows_use_the_kernels_where_a_compiler_is(monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels.load() is None:
        pytest.skip("no C compiler here")
    used = spied(monkeypatch)
    with torch.inference_mode():
        RMSNorm(4, 1e-5)(Linear(4, 4)(torch.ones(1, 4)))
    assert used == []


@pytest.mark.parametrize(
    "why", ["training", "double", "bfloat16", "many rows", "a large matrix", "autocast", "a view", "a subclass"]
)
def test_torch_computes_what_the_kernels_cannot(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(4, 4, bias=False), torch.ones(2 if why == "many rows" else 1, 4)
    if why in ("double", "bfloat16"):
        layer, x = layer.to(getattr(torch, why)), x.to(getattr(torch, why))
    if why == "a view":
        x = torch.ones(1, 8)[:, ::2]
    if why == "a subclass":
        x = x.as_subclass(type("Other", (torch.Tensor,), {}))
    if why == "a large matrix":
        monkeypatch.setattr("dgsgpt.model.linear._MOST_NUMBERS", 15)
    used = spied(monkeypatch)
    with torch.inference_mode(why != "training"), torch.autocast("cpu", enabled=why == "autocast"):
        y = layer(x)
    assert used == ["linear"]
    assert y.dtype == (torch.bfloat16 if why == "autocast" else x.dtype)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("fault", ["no compiler", "it fails", "it makes no library"])
def test_without_a_compiler_torch_computes_everything(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = {"no compiler": None, "it fails": "false", "it makes no library": "true"}[fault]
    monkeypatch.setattr("dgsgpt.model.kernels.shutil.which", lambda name: command)
    used = spied(monkeypatch)
    with torch.inference_mode():
        RMSNorm(4, 1e-5)(Linear(4, 4)(torch.ones(1, 4)))
    assert kernels.load() is None
    assert used == ["linear", "rms_norm"]
