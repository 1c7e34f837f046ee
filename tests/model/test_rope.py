import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.config import RopeConfig, RopeScalingConfig
from dgsgpt.model import GPT
from dgsgpt.model.rope import LearnedPositions, NoPositions, RotaryPositions, build_positions, rotate
from tests.model.tiny import random_tokens, tiny_config, tiny_model

SCALINGS = {
    "none": None,
    "linear": RopeScalingConfig(kind="linear", factor=4.0),
    "yarn": RopeScalingConfig(kind="yarn", factor=4.0),
    "llama3": RopeScalingConfig(kind="llama3", factor=4.0),
}


def turned(x: torch.Tensor, position: int, rope: RopeConfig, block_size: int = 1024) -> torch.Tensor:
    """`x` [D] as it stands at a position."""
    rotation = RotaryPositions(rope, len(x), block_size).rotation(torch.zeros(1, 1, 1), position)
    return rotate(x[None, None, None], rotation)[0, 0, 0]


def speeds(scaling: RopeScalingConfig | None, head_dim: int = 16, block_size: int = 1024) -> torch.Tensor:
    """How far each pair turns per token."""
    return RotaryPositions(RopeConfig(scaling=scaling), head_dim, block_size).frequencies("cpu")


@given(
    i=st.integers(0, 500),
    j=st.integers(0, 500),
    shift=st.integers(0, 500),
    seed=st.integers(0, 99),
    kind=st.sampled_from(sorted(SCALINGS)),
)
@settings(max_examples=80, deadline=None)
def test_attention_scores_depend_only_on_distance(i: int, j: int, shift: int, seed: int, kind: str) -> None:
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 16, generator=g)
    rope = RopeConfig(scaling=SCALINGS[kind])
    score = turned(q, i, rope) @ turned(k, j, rope)
    shifted = turned(q, i + shift, rope) @ turned(k, j + shift, rope)
    torch.testing.assert_close(score, shifted, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["none", "linear", "llama3"])
def test_rotation_keeps_lengths_and_leaves_position_zero(kind: str) -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    rope = RopeConfig(scaling=SCALINGS[kind])
    torch.testing.assert_close(turned(x, 0, rope), x)
    torch.testing.assert_close(turned(x, 77, rope).norm(), x.norm())


@pytest.mark.parametrize(("given", "expected"), [(None, 0.1 * math.log(4.0) + 1.0), (1.0, 1.0), (0.7, 0.7)])
def test_yarn_multiplies_queries_and_keys_by_its_attention_factor(given: float | None, expected: float) -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    rope = RopeConfig(scaling=RopeScalingConfig(kind="yarn", factor=4.0, attention_factor=given))
    for position in (0, 77):
        torch.testing.assert_close(turned(x, position, rope).norm(), x.norm() * expected)


def test_linear_scaling_divides_positions() -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    stretched = RopeConfig(scaling=RopeScalingConfig(kind="linear", factor=4.0))
    torch.testing.assert_close(turned(x, 40, stretched), turned(x, 10, RopeConfig()))


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_pairs_that_turn_often_keep_their_speed_and_the_slow_ones_are_slowed(kind: str) -> None:
    head_dim, block_size, factor = 64, 32_768, 8.0
    before = speeds(None, head_dim)
    after = speeds(RopeScalingConfig(kind=kind, factor=factor), head_dim, block_size)
    ratio = before / after
    turns = block_size / factor * before / (2 * math.pi)  # within the original context
    many = 4.0 if kind == "llama3" else 64.0
    torch.testing.assert_close(ratio[turns > many], torch.ones(int((turns > many).sum())))
    torch.testing.assert_close(ratio[turns < 0.5], torch.full((int((turns < 0.5).sum()),), factor))
    between = ratio[(turns < many) & (turns > 1.0)]
    assert len(between) > 2
    assert (between.diff() >= 0).all()
    assert 1.0 < between[len(between) // 2] < factor


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
@pytest.mark.parametrize("rope_factor", [1.0, 1.3, 4.0])
def test_the_context_before_stretching_is_by_default_that_divided_by_the_factor(kind: str, rope_factor: float) -> None:
    scaling = RopeScalingConfig(kind=kind, factor=rope_factor)
    told = scaling.model_copy(update={"original_block_size": round(1000 / rope_factor)})
    assert torch.equal(speeds(scaling, block_size=1000), speeds(told, block_size=5000))


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_a_factor_of_one_changes_nothing(kind: str) -> None:
    rope = RopeConfig(scaling=RopeScalingConfig(kind=kind, factor=1.0))
    for a, b in zip(
        RotaryPositions(rope, 16, 64).rotation(torch.zeros(1, 50, 1), 3),
        RotaryPositions(RopeConfig(), 16, 64).rotation(torch.zeros(1, 50, 1), 3),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["yarn", "llama3"])
def test_contexts_of_few_tokens_still_give_finite_speeds(kind: str) -> None:
    for block_size in (1, 2, 7):
        found = speeds(RopeScalingConfig(kind=kind, factor=1024.0), block_size=block_size)
        assert torch.isfinite(found).all()
        assert (found > 0).all()


def test_rotary_models_read_past_the_trained_context() -> None:
    model = tiny_model()
    assert model(random_tokens(length=60)).logits.shape == (2, 60, 61)


def test_learned_positions_name_their_limit() -> None:
    model = tiny_model(rope=None)
    assert model(random_tokens(length=48)).logits.shape == (2, 48, 61)
    with pytest.raises(ValueError, match="49 tokens do not fit a model with 48 learned positions"):
        model(random_tokens(length=49))


def test_learned_positions_are_looked_up_where_documents_are_packed() -> None:
    positions = LearnedPositions(10, 4)
    with torch.no_grad():
        positions.weight.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    places = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 0, 1, 2]])
    got = positions.embed(x, 0, places)
    for row in range(2):
        for column in range(6):
            torch.testing.assert_close(got[row, column], x[row, column] + positions.weight[places[row, column]])
    one_document = torch.arange(6).expand(2, 6)
    assert torch.equal(positions.embed(x, 0, one_document), positions.embed(x, 0))
    got.sum().backward()
    used = torch.bincount(places.flatten(), minlength=10).float()  # how often each place occurs
    assert torch.equal(positions.weight.grad, used[:, None].expand(10, 4))


def test_the_limit_of_learned_positions_counts_tokens_also_where_documents_are_packed() -> None:
    positions = LearnedPositions(10, 4)
    with pytest.raises(ValueError, match="11 tokens do not fit a model with 10 learned positions"):
        positions.embed(torch.zeros(1, 11, 4), 0, torch.zeros(1, 11, dtype=torch.long))


@pytest.mark.parametrize("kind", [RotaryPositions, NoPositions])
def test_positions_without_weights_leave_the_embedding_and_the_checkpoint_alone(kind: type) -> None:
    config = tiny_config() if kind is RotaryPositions else tiny_config(rope=None, positions="none")
    positions = build_positions(config)
    assert type(positions) is kind
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    assert positions.embed(x, 3) is x
    assert positions.embed(x, 3, torch.zeros(2, 6, dtype=torch.long)) is x
    assert positions.state_dict() == {}
    assert list(positions.buffers()) == []
    assert list(positions.parameters()) == []


def no_positions(**changes: object) -> GPT:
    return tiny_model(rope=None, positions="none", **changes).eval()


def test_without_positions_one_layer_sees_a_set_and_causality_gives_the_order_to_deeper_ones() -> None:
    tokens = random_tokens(batch=1, length=12)
    swapped = tokens.clone()
    swapped[0, [2, 7]] = tokens[0, [7, 2]]
    assert tokens[0, 2] != tokens[0, 7]
    with torch.no_grad():
        shallow, deep = no_positions(n_layer=1), no_positions(n_layer=3)
        torch.testing.assert_close(shallow(tokens).logits[0, -1], shallow(swapped).logits[0, -1])
        assert (deep(tokens).logits[0, -1] - deep(swapped).logits[0, -1]).abs().max() > 1e-3


def test_without_positions_a_model_is_causal_and_reads_past_the_trained_context() -> None:
    model, tokens = no_positions(), random_tokens(length=60)
    changed = tokens.clone()
    changed[:, 30:] = (changed[:, 30:] + 1) % 61
    with torch.no_grad():
        a, b = model(tokens).logits, model(changed).logits
    assert a.shape == (2, 60, 61)
    torch.testing.assert_close(a[:, :30], b[:, :30])
    assert (a[:, 30:] - b[:, 30:]).abs().max() > 0.1


def test_without_positions_cached_reading_equals_uncached() -> None:
    model, tokens = no_positions(), random_tokens(length=20)
    with torch.no_grad():
        cache = model.make_cache(2, 20)
        pieces = [model(part, cache=cache).logits for part in tokens.split([7, 1, 1, 11], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(SCALINGS))
def test_angles_stay_exact_in_a_half_precision_model(kind: str) -> None:
    rope = {"scaling": SCALINGS[kind].model_dump()} if SCALINGS[kind] else {}
    model = tiny_model(rope=rope).to(torch.bfloat16)
    cos, _ = model.positions.rotation(torch.zeros(1, 40, 1), 0)
    expected, _ = tiny_model(rope=rope).positions.rotation(torch.zeros(1, 40, 1), 0)
    assert cos.dtype == torch.float32
    assert torch.equal(cos, expected)
