"""Drawings of a config: their proportions are those of the real values."""

from __future__ import annotations

import base64
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgsgpt.config import ModelConfig, TrainConfig, build_config, layer_windows
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
    cells = pictures.mask_cells(n, (min(window, block_size),), block_size)
    reach = max(row.count("seen") for row in cells)
    assert abs(reach - n * min(window, block_size) / block_size) <= 1
    for q, row in enumerate(cells):
        assert row[q] == "seen"
        assert all((what == "future") == (k > q) for k, what in enumerate(row))


def test_a_mask_without_window_sees_every_earlier_token() -> None:
    assert all("outside" not in row for row in pictures.mask_cells(9, (None,), 512))


@pytest.mark.parametrize("pattern", ["S", "L", "B"])
@given(n=st.integers(1, 16), window=st.integers(1, 16), n_head=st.sampled_from([2, 4, 6]))
def test_a_mask_is_what_the_heads_of_the_layer_see(pattern: str, n: int, window: int, n_head: int) -> None:
    window = min(window, n)
    config = model(n_head=n_head, n_embd=12 * n_head, block_size=n, window={"size": window, "pattern": pattern})
    cells = pictures.mask_cells(n, layer_windows(config)[0], n)
    for q in range(n):
        for k in range(n):
            heads = 0
            for head in range(n_head):
                is_local = pattern == "S" or (pattern == "B" and head < n_head // 2)
                heads += q >= k and (q - k + 1 <= window or not is_local)
            expected = {0: "future" if k > q else "outside", n_head: "seen"}.get(heads, "half")
            assert cells[q][k] == expected, (q, k)


def test_a_mask_of_both_has_a_tone_for_half_of_the_heads() -> None:
    image = pictures.attention_mask((16, None), 64, n=4)
    tones = [r.get("fill-opacity") for r in drawing(image).iter(f"{SVG}rect")]
    assert (tones.count("0.85"), tones.count("0.45"), tones.count("0.08")) == (4, 6, 6)
    assert "the last 16 of 64 tokens in half of the heads, every earlier token in the others" in image


@given(st.integers(1, 64), st.integers(1, 64))
def test_as_many_experts_are_chosen_as_work_on_a_token(n_expert: int, per_token: int) -> None:
    chosen = pictures.chosen_experts(n_expert, per_token)
    assert len(chosen) == min(n_expert, per_token)
    assert chosen <= set(range(n_expert))


def test_layers_show_full_attention_dark_and_windows_pale() -> None:
    picture = drawing(pictures.layers(model(window={"size": 16, "pattern": "SSSL"})))
    tops = [r.get("fill-opacity") for r in picture.iter(f"{SVG}rect") if r.get("y") == "1.0"]
    assert tops == ["0.4", "0.4", "0.4", "0.9"] * 2


def test_layers_with_both_show_a_pale_half_above_a_dark_one() -> None:
    picture = drawing(pictures.layers(model(window={"size": 16, "pattern": "SBL"})))
    boxes: dict[str, list[tuple[float, float, str]]] = {}
    for r in picture.iter(f"{SVG}rect"):
        if float(r.get("y", 0)) < 30:
            box = (float(r.get("y", 0)), float(r.get("height", 0)), r.get("fill-opacity", ""))
            boxes.setdefault(r.get("x", ""), []).append(box)
    kinds = {"S": [(1.0, 24.0, "0.4")], "L": [(1.0, 24.0, "0.9")], "B": [(1.0, 11.5, "0.4"), (13.5, 11.5, "0.9")]}
    assert [boxes[x] for x in sorted(boxes, key=float)] == [kinds[letter] for letter in "SBLSBLSB"]


def test_layers_show_the_dense_network_beside_or_before_experts() -> None:
    def below(**moe: object) -> list[tuple[float, float]]:
        picture = drawing(pictures.layers(model(n_layer=1, moe={"n_expert": 4, **moe})))
        rects = [r for r in picture.iter(f"{SVG}rect") if float(r.get("y", 0)) >= 30]
        return [(float(r.get("width", 0)), float(r.get("y", 0)) + float(r.get("height", 0))) for r in rects]

    experts, beside, before = below(), below(dense_residual=True), below(after_dense=True)
    assert len(beside) == len(before) == len(experts) + 1
    assert beside[-1][0] == before[-1][0] > 2 * experts[0][0] - 2  # as wide as two experts
    assert max(bottom for _, bottom in experts + beside + before) <= 74
    assert beside[-1][1] > max(bottom for _, bottom in beside[:-1])  # below the experts
    assert before[-1][1] < min(bottom for _, bottom in before[:-1])  # above them, as it comes before them


@pytest.mark.parametrize(("n_expert", "per_token", "always"), [(8, 2, 0), (8, 2, 1), (4, 1, 3), (16, 4, 4)])
def test_the_router_always_reaches_the_networks_beside_the_experts(n_expert: int, per_token: int, always: int) -> None:
    image = pictures.expert_router(n_expert, per_token, always)
    rects = list(drawing(image).iter(f"{SVG}rect"))
    assert len(rects) == n_expert + always
    assert sum(r.get("fill-opacity") == "0.85" for r in rects) == per_token + always
    assert max(float(r.get("x", 0)) + float(r.get("width", 0)) for r in rects) <= 121
    assert ("beside" in image) == bool(always)


def test_layers_show_experts_only_where_there_are_some() -> None:
    picture = drawing(pictures.layers(model(moe={"n_expert": 4, "every": 2})))
    below = [r for r in picture.iter(f"{SVG}rect") if float(r.get("y", 0)) >= 30]
    assert len(below) == 4 + 4 * 4  # four dense networks, four layers of four experts


@pytest.mark.parametrize("kind", ["cosine", "wsd", "linear", "constant"])
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


@pytest.mark.parametrize("max_order", [2, 3, 5, 8])
def test_each_order_of_n_grams_looks_up_a_row_of_its_own_table(max_order: int) -> None:
    rects = list(drawing(pictures.ngram_tables(max_order)).iter(f"{SVG}rect"))
    orders = min(max_order, 5) - 1
    assert sum(r.get("height") == "3.0" for r in rects) == orders  # the spans of tokens
    looked_up = [r for r in rects if float(r.get("x", 0)) >= 92 and r.get("fill-opacity") == "0.85"]
    assert len(looked_up) == orders
    assert max(float(r.get("y", 0)) + float(r.get("height", 0)) for r in rects) <= 74


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
        pictures.attention_mask((16,), 64),
        pictures.shared_heads(8, 2),
        pictures.kept_activations(4, "full"),
        pictures.ngram_tables(3),
        pictures.learning_rate_curve(TrainConfig()),
    ]
    for image in images:
        alt = re.search(r'alt="([^"]*)"', image)
        assert alt
        assert alt.group(1)
