"""A trained model over longer texts: what stretched positions change, what they share, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from dgsgpt.config import ModelConfig
from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.errors import ConfigError
from dgsgpt.evaluation import evaluate_text, extended
from dgsgpt.model import GPT
from tests.model.tiny import VARIANTS, random_tokens, tiny_config, tiny_model

TRAINED = 32


def documents(count: int, length: int, seed: int) -> str:
    """Documents of `length` characters: the values of eight keys, then pairs of a key and its value to the end."""
    chance = random.Random(seed)
    text = []
    for _ in range(count):
        values = [chr(ord(";") + 8 * key + chance.randrange(8)) for key in range(8)]
        pairs = [f"{key}{values[key]}" for key in chance.choices(range(8), k=length // 2)]
        text.append("".join((*values, *pairs))[:length])
    return "".join(text)


def trained_on_documents(seed: int, steps: int = 200, batch_size: int = 16) -> GPT:
    """A model of one block that has seen documents of `TRAINED` bytes."""
    torch.manual_seed(seed)
    config = {
        "n_layer": 1,
        "n_head": 2,
        "n_embd": 32,
        "block_size": TRAINED,
        "vocab_size": 256,
        "rope": {"theta": 100.0},
    }
    model = GPT(ModelConfig.model_validate(config))
    tokens = torch.tensor(ByteTokenizer().encode(documents(steps * batch_size, TRAINED, seed)))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    for step, batch in enumerate(tokens.view(steps, batch_size, TRAINED)):
        optimizer.param_groups[0]["lr"] = 5e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        optimizer.zero_grad()
        model(batch[:, :-1], batch[:, 1:]).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_yarn_reads_four_times_the_trained_context_far_better_than_no_scaling(seed: int) -> None:
    model, context = trained_on_documents(seed), 4 * TRAINED
    text = documents(64, context, seed=1000 + seed)

    def loss(judged: GPT) -> float:
        return evaluate_text(judged, ByteTokenizer(), text, block_size=context).loss

    within = evaluate_text(model, ByteTokenizer(), documents(64, TRAINED, 1000 + seed), block_size=TRAINED).loss
    unscaled, stretched = loss(model), loss(extended(model, context, "yarn"))
    # Over eight seeds yarn gained 0.7 to 1.8 nats, and lost at most 0.16 against the trained context.
    assert stretched < unscaled - 0.5
    assert stretched < within + 0.4


ROTARY = sorted(
    name for name, values in VARIANTS.items() if values.get("rope", {}) is not None and not values.get("rope")
)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
@pytest.mark.parametrize("name", ROTARY)
def test_an_extended_model_shares_every_weight_and_has_the_positions_of_its_config(name: str, kind: str) -> None:
    model = tiny_model(**VARIANTS[name]).eval()
    longer = extended(model, 120, kind)
    assert longer is not model
    assert not longer.training
    assert {n: p.data_ptr() for n, p in longer.state_dict().items()} == {
        n: p.data_ptr() for n, p in model.state_dict().items()
    }
    assert not any(t.is_meta for t in (*longer.parameters(), *longer.buffers()))
    scaling = {"kind": kind, "factor": 2.5, "original_block_size": 48}
    asked = tiny_config(**{**VARIANTS[name], "block_size": 120, "rope": {"scaling": scaling}})
    assert longer.config == asked
    fresh = GPT(asked).eval()
    fresh.load_state_dict(model.state_dict())
    tokens = random_tokens(length=120)
    with torch.no_grad():
        logits = longer(tokens).logits
        assert torch.equal(logits, fresh(tokens).logits)
        assert (logits - model(tokens).logits).abs().max() > 1e-3


def test_extending_leaves_the_random_numbers_and_the_model_alone() -> None:
    model = tiny_model()
    model.train()
    before, config = torch.get_rng_state(), model.config
    assert extended(model, 96, "yarn").training
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config is config


@pytest.mark.parametrize("changes", [{}, {"rope": {"scaling": {"kind": "yarn", "factor": 2.0}}}])
@pytest.mark.parametrize("context", [1, 48, 49, 1000])
def test_without_a_kind_the_model_itself_reads_on(changes: dict[str, Any], context: int) -> None:
    model = tiny_model(**changes)
    assert extended(model, context) is model


def test_a_model_without_positions_reads_any_context_and_a_learned_one_up_to_its_last_position() -> None:
    for context in (1, 48, 1000):
        model = tiny_model(rope=None, positions="none")
        assert extended(model, context) is model
    learned = tiny_model(rope=None)
    for context in (1, 48):
        assert extended(learned, context) is learned


@pytest.mark.parametrize(
    ("changes", "context", "kind", "message"),
    [
        ({}, 0, None, "context=0 must be at least 1 token; leave it out for the trained 48"),
        ({}, -3, "yarn", "context=-3 must be at least 1 token; leave it out for the trained 48"),
        ({"rope": None}, 49, None, "context=49 must not exceed the model's 48 learned positions; lower it to 48, or"),
        ({"rope": None}, 96, "yarn", "rope scaling yarn needs rotary positions, but model.rope=null; leave it out"),
        ({"rope": None, "positions": "none"}, 96, "linear", "rope scaling linear needs rotary positions"),
        ({}, 48, "llama3", "needs a context beyond the trained 48 tokens, not 48; raise the context, e.g. to 96, or"),
        ({}, 48 * 1025, "yarn", "rope.scaling.factor=1025.0 must be at most 1024"),
        ({}, 96, "dynamic", "rope.scaling.kind='dynamic' must be 'linear', 'yarn' or 'llama3'"),
        ({"rope": {"scaling": {"factor": 2.0}}}, 96, "yarn", "must not replace the linear scaling that the model was"),
    ],
)
def test_what_cannot_be_extended_is_refused_in_one_line(
    changes: dict[str, Any], context: int, kind: str | None, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        extended(tiny_model(**changes), context, kind)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_context_longer_than_the_text_judges_it_in_one_window() -> None:
    text = documents(1, 40, seed=0)
    model = tiny_model(vocab_size=256).eval()
    results = [evaluate_text(model, ByteTokenizer(), text, block_size=size) for size in (39, 40, 10**12)]
    assert results[0].tokens == 39
    assert results[1] == results[2] == results[0]
