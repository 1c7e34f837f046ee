import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dgsgpt.errors import ConfigError
from dgsgpt.model import GPT
from dgsgpt.model.attention import Surroundings
from dgsgpt.model.shortcuts import OwnOnly
from tests.model.tiny import VARIANTS, random_tokens, tiny_config, tiny_model

each_variant = pytest.mark.parametrize("name", VARIANTS)


class Given(torch.nn.Module):
    """A layer whose result is fixed."""

    def __init__(self, result: torch.Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.result


@each_variant
def test_every_toggle_overfits_a_tiny_batch(name: str) -> None:
    torch.manual_seed(0)
    model = GPT(tiny_config(**VARIANTS[name]))
    tokens = random_tokens(batch=2, length=25)
    x, y = tokens[:, :-1], tokens[:, 1:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(60):
        out = model(x, y)
        optimizer.zero_grad()
        (out.loss + out.aux_loss).backward()
        optimizer.step()
    assert model.eval()(x, y).loss < 0.3


@each_variant
def test_a_fresh_model_knows_nothing(name: str) -> None:
    torch.manual_seed(0)
    tokens = random_tokens(batch=8)
    loss = GPT(tiny_config(**VARIANTS[name]))(tokens[:, :-1], tokens[:, 1:]).loss
    assert abs(loss.item() - math.log(61)) < 0.1


@each_variant
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model, tokens = tiny_model(**VARIANTS[name]), random_tokens()
    out = model(tokens, tokens.roll(-1, 1))
    (out.loss + out.aux_loss).backward()
    for parameter, p in model.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all(), parameter
        # A bias of keys shifts all scores of a query alike; layers after the last norm see the rest.
        assert p.grad.abs().sum() > 0, parameter


@each_variant
def test_half_precision_autocast_comes_close_to_full(name: str) -> None:
    model, tokens = tiny_model(**VARIANTS[name]), random_tokens()
    targets = tokens.roll(-1, 1)
    exact = model(tokens, targets)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(tokens, targets)
    (out.loss + out.aux_loss).backward()
    assert out.loss.dtype == torch.float32
    assert abs(out.loss.item() - exact.loss.item()) < 0.05 * exact.loss.item()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_loss_is_the_mean_over_targets_that_count() -> None:
    model, tokens = tiny_model().eval(), random_tokens()
    targets = tokens.roll(-1, 1)
    targets[0, :40] = -100
    targets[1, 3] = -100
    out = model(tokens, targets)
    counted = [
        -F.log_softmax(out.logits[b, t], dim=-1)[targets[b, t]]
        for b in range(2)
        for t in range(48)
        if targets[b, t] != -100
    ]
    torch.testing.assert_close(out.loss, torch.stack(counted).mean())


def test_loss_of_no_targets_is_zero_with_no_gradient() -> None:
    model, tokens = tiny_model(), random_tokens()
    loss = model(tokens, torch.full_like(tokens, -100)).loss
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_without_targets_there_is_no_loss_and_without_experts_no_auxiliary_loss() -> None:
    out = tiny_model()(random_tokens())
    assert out.loss is None
    assert out.router is None
    assert out.aux_loss == 0
    assert out.logits.shape == (2, 48, 61)


def test_tied_embeddings_are_one_parameter() -> None:
    tied, untied = tiny_model(), tiny_model(tie_embeddings=False)
    assert "head.weight" not in tied.state_dict()
    assert untied.state_dict()["head.weight"].shape == (61, 32)
    assert sum(p.numel() for p in untied.parameters()) - sum(p.numel() for p in tied.parameters()) == 61 * 32
    tokens = torch.tensor([[7]])
    tied(tokens, tokens).loss.backward()
    assert tied.embed.weight.grad[8].any()  # a row that was only an output


def test_state_dict_names_are_stable() -> None:
    names = set(tiny_model(n_layer=1, rope=None, qk_norm=True, tie_embeddings=False).state_dict())
    block = "blocks.0."
    assert names == {
        "embed.weight",
        "positions.weight",
        "norm.weight",
        "head.weight",
        *(block + f"attn.{part}.weight" for part in ("q", "k", "v", "out", "q_norm", "k_norm")),
        *(block + f"mlp.{part}.weight" for part in ("gate", "up", "down")),
        *(block + f"norm{i}.weight" for i in (1, 2)),
    }
    sparse = set(tiny_model(n_layer=1, moe={"n_expert": 4, "n_shared_expert": 1}).state_dict())
    assert {n.removeprefix(block + "mlp.") for n in sparse if "mlp" in n} == {
        "routed.router.weight",
        *(f"routed.experts.{part}" for part in ("gate", "up", "down")),
        *(f"shared.{part}.weight" for part in ("gate", "up", "down")),
    }


def test_names_of_biases_and_of_experts_after_a_dense_network_are_stable() -> None:
    names = set(tiny_model(n_layer=1, **VARIANTS["original"]).state_dict())
    block = "blocks.0."
    assert names == {
        *("embed.weight", "positions.weight", "norm.weight", "norm.bias", "head.weight", "head.bias"),
        *(block + f"attn.{part}.weight" for part in ("q", "k", "v", "out")),
        block + "attn.out.bias",
        *(block + f"mlp.{part}.{kind}" for part in ("up", "down") for kind in ("weight", "bias")),
        *(block + f"norm{i}.{kind}" for i in (1, 2, 3) for kind in ("weight", "bias")),
        *(block + f"moe.router.{kind}" for kind in ("weight", "bias")),
        *(block + f"moe.experts.{part}" for part in ("up", "down", "up_bias", "down_bias")),
    }


def test_heads_have_the_width_they_are_given() -> None:
    state = tiny_model(head_size=12, qkv_bias="with").state_dict()
    shapes = {name: tuple(state[f"blocks.0.attn.{name}.weight"].shape) for name in ("q", "k", "v", "out")}
    assert shapes == {"q": (48, 32), "k": (24, 32), "v": (24, 32), "out": (32, 48)}
    assert state["blocks.0.attn.q.bias"].shape == (48,)
    assert "blocks.0.attn.out.bias" not in state


def test_an_output_bias_moves_the_logits_before_they_are_capped() -> None:
    model, tokens = tiny_model(head_bias=True, tie_embeddings=False, logit_softcap=3.0).eval(), random_tokens()
    with torch.no_grad():
        model.head.weight.zero_()
    expected = 3.0 * torch.tanh(model.head.bias / 3.0)
    torch.testing.assert_close(model(tokens).logits, expected.expand(2, 48, 61))


BIASES = {"bias": True, "norm": "layernorm", "tie_embeddings": False, "head_bias": True}


@pytest.mark.parametrize(
    ("changes", "sub_layers"),
    [({}, 16), ({"moe": {"n_expert": 4, "bias": True}}, 16), ({"moe": {"bias": True, "after_dense": True}}, 24)],
    ids=["dense", "experts", "experts after dense"],
)
def test_weights_start_as_documented(changes: dict[str, Any], sub_layers: int) -> None:
    torch.manual_seed(0)
    model = GPT(tiny_config(n_layer=8, n_embd=128, **BIASES, **changes))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif p.ndim == 1:
            assert (p == 1).all(), name
        else:
            narrow = name.endswith(("out.weight", "down.weight", "experts.down"))
            expected = 0.02 / math.sqrt(sub_layers) if narrow else 0.02
            assert p.std().item() == pytest.approx(expected, rel=0.1), name


def test_an_unknown_vocabulary_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"model\.vocab_size=null"):
        GPT(tiny_config(vocab_size=None))


def test_dropout_acts_in_training_only() -> None:
    model, tokens = tiny_model(dropout=0.5), random_tokens()
    assert not torch.equal(model.train()(tokens).logits, model(tokens).logits)
    assert torch.equal(model.eval()(tokens).logits, model(tokens).logits)


def test_rows_of_a_batch_do_not_touch() -> None:
    model, tokens = tiny_model(**VARIANTS["all"]).eval(), random_tokens(batch=3)
    together = model(tokens).logits
    alone = torch.cat([model(row[None]).logits for row in tokens])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_copy_of_a_model_is_independent() -> None:
    model, tokens = tiny_model(), random_tokens()
    twin = copy.deepcopy(model)
    before = twin(tokens).logits
    with torch.no_grad():
        model.embed.weight.zero_()
    assert torch.equal(twin(tokens).logits, before)


def test_zero_init_starts_every_block_as_the_identity() -> None:
    torch.manual_seed(0)
    model = GPT(tiny_config(zero_init=True, moe={"n_expert": 4, "every": 2, "n_shared_expert": 1}))
    tokens = random_tokens()
    expected = F.linear(model.norm(model.embed(tokens)), model.embed.weight)
    torch.testing.assert_close(model(tokens).logits, expected)
    model(tokens, tokens).loss.backward()
    assert all(block.attn.out.weight.grad.abs().max() > 0 for block in model.blocks)  # it can leave the identity


def test_shortcuts_mix_in_what_the_first_layer_saw() -> None:
    model = tiny_model(value_residual=True, x0_shortcut=True).eval()
    tokens = random_tokens()
    first = x = model.embed(tokens)
    around = Surroundings(model.positions.rotation(x, 0))
    values = None
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            plain = copy.deepcopy(block)
            plain.stream_mix, plain.attn.value_mix = OwnOnly(), OwnOnly()
            if i > 0:
                a, b = block.stream_mix.weight
                x = a * x + b * first
                c, d = block.attn.value_mix.weight
                own = block.attn.v(block.norm1(x))
                plain.attn.v = Given(c * own + d * values)
            else:
                values = block.attn.v(block.norm1(x))
            x = plain(x, around).x
        expected = F.linear(model.norm(x), model.embed.weight)
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-5, rtol=1e-5)


def test_shortcuts_start_as_documented() -> None:
    model = GPT(tiny_config(value_residual=True, x0_shortcut=True))
    shares = {n: p.tolist() for n, p in model.named_parameters() if "mix" in n}
    assert shares == {
        f"blocks.{i}.{name}.weight": start
        for i in (1, 2)
        for name, start in {"stream_mix": [1.0, 0.0], "attn.value_mix": [0.5, 0.5]}.items()
    }


def test_logits_stay_within_the_cap() -> None:
    model = tiny_model(logit_softcap=0.5).eval()
    free = tiny_model().eval()
    tokens = random_tokens()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, 0.5 * torch.tanh(free(tokens).logits / 0.5))
