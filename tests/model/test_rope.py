import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.config import RopeConfig, RopeScalingConfig
from dgsgpt.model.rope import RotaryPositions, rotate
from tests.model.tiny import random_tokens, tiny_model


def turned(x: torch.Tensor, position: int, rope: RopeConfig) -> torch.Tensor:
    """`x` [D] as it stands at a position."""
    rotation = RotaryPositions(rope, len(x)).rotation(torch.zeros(1, 1, 1), position)
    return rotate(x[None, None, None], rotation)[0, 0, 0]


@given(i=st.integers(0, 500), j=st.integers(0, 500), shift=st.integers(0, 500), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_attention_scores_depend_only_on_distance(i: int, j: int, shift: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 16, generator=g)
    rope = RopeConfig()
    score = turned(q, i, rope) @ turned(k, j, rope)
    shifted = turned(q, i + shift, rope) @ turned(k, j + shift, rope)
    torch.testing.assert_close(score, shifted, atol=2e-3, rtol=1e-3)


def test_rotation_keeps_lengths_and_leaves_position_zero() -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned(x, 0, RopeConfig()), x)
    torch.testing.assert_close(turned(x, 77, RopeConfig()).norm(), x.norm())


def test_linear_scaling_divides_positions() -> None:
    x = torch.randn(16, generator=torch.Generator().manual_seed(0))
    stretched = RopeConfig(scaling=RopeScalingConfig(kind="linear", factor=4.0))
    torch.testing.assert_close(turned(x, 40, stretched), turned(x, 10, RopeConfig()))


def test_rotary_models_read_past_the_trained_context() -> None:
    model = tiny_model()
    assert model(random_tokens(length=60)).logits.shape == (2, 60, 61)


def test_learned_positions_name_their_limit() -> None:
    model = tiny_model(rope=None)
    assert model(random_tokens(length=48)).logits.shape == (2, 48, 61)
    with pytest.raises(ValueError, match="49 tokens do not fit a model with 48 learned positions"):
        model(random_tokens(length=49))


def test_angles_stay_exact_in_a_half_precision_model() -> None:
    model = tiny_model().to(torch.bfloat16)
    cos, _ = model.positions.rotation(torch.zeros(1, 40, 1), 0)
    expected, _ = tiny_model().positions.rotation(torch.zeros(1, 40, 1), 0)
    assert cos.dtype == torch.float32
    assert torch.equal(cos, expected)
