"""What is read off weights layer by layer, and what stands in charts and tables."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dgsgpt.inspect.weights import WeightReport, weight_report
from dgsgpt.ui import weights_view
from dgsgpt.ui.theme import LIGHT


def report(path: Path, blocks: int, scale: float = 1.0, broken: int = 0) -> WeightReport:
    torch.manual_seed(blocks)
    tensors = {"embed.weight": torch.randn(8, 4) * scale, "norm.weight": torch.ones(4)}
    tensors |= {f"blocks.{i}.mlp.up.weight": torch.randn(4, 4) * scale for i in range(blocks)}
    if broken:
        tensors["embed.weight"].view(-1)[:broken] = float("nan")
    save_file(tensors, str(path))
    return weight_report(path)


@pytest.fixture
def reports(tmp_path: Path) -> dict[str, WeightReport]:
    return {"A": report(tmp_path / "a", 2), "B": report(tmp_path / "b", 11, 2.0)}


def test_layers_are_in_the_order_of_the_network() -> None:
    layers = ["head", "block 10", "block 2", "norm", "embed", "block 2"]
    assert weights_view.order_of(layers) == ["embed", "block 2", "block 10", "head", "norm"]
    assert [weights_view.short(layer) for layer in ("block 0", "block 11", "embed")] == ["1", "12", "embed"]


def test_a_chart_has_a_line_for_each_over_the_layers_it_has(reports: dict[str, WeightReport]) -> None:
    curves = weights_view.curves_of(reports, "rms")
    assert "norm" not in curves["A"]  # a vector of ones beside matrices says nothing
    figure = weights_view.chart(LIGHT, curves, {"A": "#111111", "B": "#222222"})
    a, b = figure.data
    assert len(a.x) == 3
    assert len(b.x) == 12
    known = {layer.layer: layer.statistics.rms for layer in reports["B"].layers}
    assert b.y[1] == known["block 0"]
    assert sorted(note.text for note in figure.layout.annotations) == ["<b>A</b>", "<b>B</b>"]


def test_the_table_has_every_layer_and_a_dash_where_there_is_none(reports: dict[str, WeightReport]) -> None:
    table = weights_view.layer_frame(reports)
    assert len(table) == 13
    row = table[table["layer"] == "block 5"].iloc[0]
    assert row["RMS B"] > 0
    assert row["RMS A"] != row["RMS A"]
    assert list(weights_view.tensor_frame(reports["A"])["shape"]) == ["8 × 4", "4 × 4", "4 × 4", "4"]


def test_weights_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    reports = {"A": report(tmp_path / "a", 1), "B": report(tmp_path / "b", 1, broken=3)}
    assert weights_view.broken(reports) == ["B: 3\u00a0weights not finite, in embed"]
    assert list(weights_view.layer_frame(reports)["not finite B"]) == [3, 0, 0]
