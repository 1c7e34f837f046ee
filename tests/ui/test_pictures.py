"""Drawings of a config: their proportions are those of the real values."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import ModelConfig, TrainConfig, build_config
from dgsgpt.train.schedule import learning_rate
from dgsgpt.ui import pictures
from dgsgpt.ui.markup import Html

SVG = "{http://www.w3.org/2000/svg}"


def drawing(image: Html) -> ElementTree.Element:
    """The SVG inside an image tag; fails when it is not well-formed."""
    found = re.search(r"base64,([^\"]+)", image)
    assert found
    return ElementTree.fromstring(base64.b64decode(found.group(1)))


def model(**changes: object) -> ModelConfig:
    return build_config({"model": {"n_layer": 8, "n_head": 8, "n_embd": 64, "block_size": 64, **changes}}).model


@given(st.integers(1, 24), st.integers(1, 4096), st.integers(1, 4096))
def test_a_mask_is_causal_and_keeps_the_window_s_share(n: int, window: int, block_size: int) -> None:
    cells = pictures.mask_cells(n, min(window, block_size), block_size)
    reach = max(row.count("seen") for row in cells)
    assert abs(reach - n * min(window, block_size) / block_size) <= 1
    for q, row in enumerate(cells):
        assert row[q] == "seen"
        assert all((what == "future") == (k > q) for k, what in enumerate(row))


def test_a_mask_without_window_sees_every_earlier_token() -> None:
    assert all("outside" not in row for row in pictures.mask_cells(9, None, 512))


@given(st.integers(1, 64), st.integers(1, 64))
def test_as_many_experts_are_chosen_as_work_on_a_token(n_expert: int, per_token: int) -> None:
    chosen = pictures.chosen_experts(n_expert, per_token)
    assert len(chosen) == min(n_expert, per_token)
    assert chosen <= set(range(n_expert))


def test_layers_show_full_attention_dark_and_windows_pale() -> None:
    picture = drawing(pictures.layers(model(window={"size": 16, "pattern": "SSSL"})))
    tops = [r.get("fill-opacity") for r in picture.iter(f"{SVG}rect") if r.get("y") == "1.0"]
    assert tops == ["0.4", "0.4", "0.4", "0.9"] * 2


def test_layers_show_experts_only_where_there_are_some() -> None:
    picture = drawing(pictures.layers(model(moe={"n_expert": 4, "every": 2})))
    below = [r for r in picture.iter(f"{SVG}rect") if float(r.get("y", 0)) >= 30]
    assert len(below) == 4 + 4 * 4  # four dense networks, four layers of four experts


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(1000, 100), (1, 0), (1, 1), (50, 50), (7, 0)])
def test_the_curve_follows_the_schedule_that_trains(kind: str, steps: int, warmup: int) -> None:
    train = TrainConfig.model_validate({"steps": steps, "schedule": {"kind": kind, "warmup_steps": warmup}})
    line = drawing(pictures.learning_rate_curve(train)).find(f"{SVG}polyline")
    assert line is not None
    points = [tuple(map(float, p.split(","))) for p in line.get("points", "").split()]
    for x, y in points:
        step = round((x - 2) / 226 * max(1, steps - 1))
        near = {learning_rate(s, train) / train.lr for s in (step - 1, step, step + 1) if 0 <= s < steps}
        share = (68 - y) / 62
        assert min(near) - 0.01 <= share <= max(near) + 0.01


@pytest.mark.parametrize(("heads", "kv"), [(1, 1), (4, 1), (12, 4), (64, 8), (128, 1), (6, 6)])
def test_heads_are_drawn_in_their_groups(heads: int, kv: int) -> None:
    picture = drawing(pictures.shared_heads(heads, kv))
    rects = list(picture.iter(f"{SVG}rect"))
    lines = list(picture.iter(f"{SVG}line"))
    queries, shared = len(lines), len(rects) - len(lines)
    assert queries <= 32
    if heads <= 16:
        assert (queries, shared) == (heads, kv)


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_checkpointing_keeps_fewer_activations(mode: str) -> None:
    picture = drawing(pictures.kept_activations(6, mode))
    kept = sum(r.get("fill-opacity") == "0.62" for r in picture.iter(f"{SVG}rect"))
    assert kept == {"none": 48, "full": 0, "selective": 24}[mode]


def test_every_picture_says_in_words_what_it_shows() -> None:
    images = [
        pictures.rotary(),
        pictures.expert_router(8, 2),
        pictures.layers(model()),
        pictures.attention_mask(16, 64),
        pictures.shared_heads(8, 2),
        pictures.kept_activations(4, "full"),
    ]
    for image in images:
        alt = re.search(r'alt="([^"]*)"', image)
        assert alt
        assert alt.group(1)
