"""Statistics of weights against numpy, and distances against closed forms; damaged files are told in a line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dgsgpt.errors import CheckpointError
from dgsgpt.inspect import weights
from dgsgpt.inspect.weights import layer_distances, layer_of, weight_report
from tests.model.tiny import VARIANTS, tiny_model


def save(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, str(path))
    return path


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return dict(tiny_model(**VARIANTS["all_new"]).state_dict())


def test_every_tensor_has_the_figures_that_numpy_gives(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_SLICE", 100)
    report = weight_report(save(tmp_path / "a.safetensors", state))
    assert {t.name: t.shape for t in report.tensors} == {name: tuple(t.shape) for name, t in state.items()}
    for found in report.tensors:
        w, s = state[found.name].double().numpy(), found.statistics
        assert s.parameters == w.size
        expected = [w.mean(), w.std(), math.sqrt((w**2).mean()), np.abs(w).max(), (w == 0).mean()]
        np.testing.assert_allclose([s.mean, s.std, s.rms, s.max_abs, s.zeros], expected, rtol=1e-6, atol=1e-9)
        assert s.non_finite == 0
        assert (s.spectral_norm is None) == (w.ndim < 2)


def test_layers_are_in_the_order_of_the_network_and_sum_their_tensors(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    report = weight_report(save(tmp_path / "a.safetensors", state))
    assert [layer.layer for layer in report.layers] == ["embed", "ngram", "block 0", "block 1", "block 2", "norm"]
    for layer in report.layers:
        mine = np.concatenate(
            [t.double().numpy().ravel() for name, t in state.items() if layer_of(name) == layer.layer]
        )
        s = layer.statistics
        assert s.parameters == mine.size
        expected = [mine.mean(), mine.std(), np.abs(mine).max()]
        np.testing.assert_allclose([s.mean, s.std, s.max_abs], expected, rtol=1e-6, atol=1e-9)
    assert sum(layer.statistics.parameters for layer in report.layers) == sum(t.numel() for t in state.values())


def test_blocks_are_ordered_by_number_not_by_letter(tmp_path: Path) -> None:
    state = {f"blocks.{i}.norm1.weight": torch.ones(2) for i in range(12)} | {"head.weight": torch.ones(2, 2)}
    report = weight_report(save(tmp_path / "a.safetensors", state))
    assert [layer.layer for layer in report.layers] == [*(f"block {i}" for i in range(12)), "head"]


def test_spectral_norm_and_stable_rank_are_those_of_the_singular_values(tmp_path: Path) -> None:
    chance = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(20, 20, generator=chance))
    p, _ = torch.linalg.qr(torch.randn(12, 12, generator=chance))
    values = torch.tensor([5.0, 2.0, *[1.0] * 10])
    w = q[:, :12] @ torch.diag(values) @ p
    stack = torch.stack([w, 3 * w, torch.zeros_like(w)])
    tensors = {"w.weight": w, "experts.up": stack, "zero.weight": torch.zeros(4, 4), "flat.weight": torch.ones(9)}
    found = {t.name: t.statistics for t in weight_report(save(tmp_path / "a.safetensors", tensors)).tensors}
    rank = float(values.square().sum()) / 25
    assert found["w.weight"].spectral_norm == pytest.approx(5.0, rel=1e-4)
    assert found["w.weight"].stable_rank == pytest.approx(rank, rel=1e-3)
    assert found["experts.up"].spectral_norm == pytest.approx(15.0, rel=1e-4)
    assert found["experts.up"].stable_rank == pytest.approx(rank, rel=1e-3)
    assert (found["zero.weight"].spectral_norm, found["zero.weight"].stable_rank) == (0.0, None)
    assert found["flat.weight"].spectral_norm is None


def test_large_weights_have_a_finite_spectral_norm(tmp_path: Path) -> None:
    report = weight_report(save(tmp_path / "large.safetensors", {"head.weight": torch.full((4, 4), 1e25)}))
    assert report.tensors[0].statistics.spectral_norm == pytest.approx(4e25)
    assert report.tensors[0].statistics.stable_rank == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_numbers_that_are_not_finite_are_counted_and_left_out(tmp_path: Path, dtype: torch.dtype) -> None:
    w = torch.tensor([[1.0, -3.0, 0.0], [math.nan, math.inf, -math.inf]], dtype=dtype)
    tensors = {"embed.weight": w, "norm.weight": torch.full((3,), math.nan)}
    report = weight_report(save(tmp_path / "a.safetensors", tensors))
    s = report.tensors[0].statistics
    assert (s.non_finite, s.parameters, s.zeros, s.max_abs) == (3, 6, 1 / 6, 3.0)
    assert s.mean == pytest.approx(-2 / 3)
    assert s.spectral_norm is None
    assert report.tensors[0].dtype == str(dtype).removeprefix("torch.")
    lost = report.layers[1].statistics
    assert (lost.mean, lost.std, lost.max_abs, lost.non_finite) == (None, None, None, 3)


def test_two_reports_of_one_file_are_equal(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path / "model.safetensors", state)
    assert weight_report(path) == weight_report(tmp_path)  # a directory stands for its model


# ---------------------------------------------------------------- distances
def test_a_checkpoint_has_no_distance_from_itself(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path / "a.safetensors", state)
    for found in layer_distances(path, path):
        assert found.distance == 0.0
        assert found.cosine is None or found.cosine == pytest.approx(1.0)


def test_distance_and_angle_are_those_of_the_layer_as_one_vector(
    tmp_path: Path, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_SLICE", 100)
    other = dict(tiny_model(seed=5, **VARIANTS["all_new"]).state_dict())
    found = layer_distances(save(tmp_path / "a.safetensors", state), save(tmp_path / "b.safetensors", other))
    assert len(found) == 6
    for layer in found:
        a, b = (
            np.concatenate(
                [t.double().numpy().ravel() for name, t in sorted(side.items()) if layer_of(name) == layer.layer]
            )
            for side in (state, other)
        )
        assert layer.parameters == a.size
        assert layer.distance == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-9)
        assert layer.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), rel=1e-9)


def test_distances_without_a_meaning_are_none(tmp_path: Path) -> None:
    a = {"embed.weight": torch.zeros(2, 2), "norm.weight": torch.zeros(2), "head.weight": torch.tensor([math.nan])}
    b = {"embed.weight": torch.ones(2, 2), "norm.weight": torch.zeros(2), "head.weight": torch.tensor([1.0])}
    found = layer_distances(save(tmp_path / "a.safetensors", a), save(tmp_path / "b.safetensors", b))
    assert [(d.layer, d.distance, d.cosine) for d in found] == [
        ("embed", None, None), ("norm", 0.0, None), ("head", None, None),
    ]  # fmt: skip


def test_other_names_or_shapes_are_told(tmp_path: Path) -> None:
    a = save(tmp_path / "a.safetensors", {"x.weight": torch.ones(2, 3), "y.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"b\.safetensors: has no tensor y\.weight, which .*a\.safetensors has"):
        layer_distances(a, save(tmp_path / "b.safetensors", {"x.weight": torch.ones(2, 3)}))
    shaped = save(tmp_path / "c.safetensors", {"x.weight": torch.ones(3, 2), "y.weight": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"tensor x\.weight is \(3, 2\), in .* it is \(2, 3\)"):
        layer_distances(a, shaped)


def test_what_is_no_whole_file_is_told(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    path = save(tmp_path / "a.safetensors", state)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-5])
    (tmp_path / "large.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    for name in ("cut", "large", "missing"):
        with pytest.raises(CheckpointError) as e:
            weight_report(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(e.value)
        assert f"{name}.safetensors" in str(e.value)
