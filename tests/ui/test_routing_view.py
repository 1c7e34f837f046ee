"""The figure of the routing shows the weights and says what else there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dgsgpt.config import load_config
from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.inspect.routing import RoutingLook, look_at_routing
from dgsgpt.ui import routing_view
from dgsgpt.ui.theme import LIGHT
from tests.model.tiny import tiny_config, tiny_model

TEXT = "<b>&amp; so it was"


def look(**moe: Any) -> RoutingLook:
    tokenizer = ByteTokenizer()
    return look_at_routing(tiny_model(vocab_size=256, moe={"n_expert": 4, **moe}), tokenizer, tokenizer.encode(TEXT))


def test_cells_are_weights_and_empty_where_an_expert_was_not_chosen() -> None:
    found = look(n_expert_per_token=3)
    one = found.layers[1]
    figure = routing_view.heat(LIGHT, one, found.labels)
    cells = np.asarray(figure.data[0].z, dtype=float)
    for t, (experts, weights) in enumerate(zip(one.experts, one.weights, strict=True)):
        np.testing.assert_array_equal(cells[experts, t], weights)
        assert np.isnan(np.delete(cells[:, t], experts)).all()
    assert list(figure.layout.xaxis.ticktext)[:4] == ["&lt;", "b", "&gt;", "&amp;"]
    assert figure.data[0].text[2][0].startswith("“&lt;”: expert 2, weight ")
    assert [a.text for a in figure.layout.annotations] == [f"{100 * s:.0f}\u00a0%" for s in one.load()]


def test_many_experts_keep_a_bounded_height_and_some_labels() -> None:
    found = look(n_expert=200)
    figure = routing_view.heat(LIGHT, found.layers[0], found.labels)
    assert figure.layout.height <= 520
    assert len(figure.layout.yaxis.ticktext) <= 32
    assert not figure.layout.annotations


def test_the_notes_say_how_many_what_is_shared_and_which_layer_it_is() -> None:
    found = look(every=2, n_shared_expert=1)
    assert routing_view.about(found) == "gate weight of the two experts each token used"
    assert routing_view.beside(found, found.layers[0], 1).startswith("Every token passes 1 shared expert too.")
    assert "Layer 0 is dense; this is layer 1." in routing_view.beside(found, found.layers[0], 0)
    assert routing_view.beside(look(n_expert=40), look(n_expert=40).layers[0], 0) == ""


@pytest.mark.parametrize(("asked", "shown"), [(0, 1), (1, 1), (2, 1)])
def test_a_dense_layer_shows_the_next_with_experts(asked: int, shown: int) -> None:
    assert routing_view.layer_with_experts(tiny_config(moe={"every": 2}), asked) == shown
    assert routing_view.layer_with_experts(tiny_config(), asked) is None


def test_the_command_for_dense_models_is_a_config_with_experts() -> None:
    _, _, file, _, override = routing_view.TRY.split()
    config = load_config(file, [override])
    assert config.model.moe is not None
    assert config.model.moe.n_expert == 8
