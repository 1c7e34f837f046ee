"""What each token costs is the model's own -log p, and the pieces are the text."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.evaluation.scores import score_text
from dgsgpt.inspect.surprise import Piece, Surprise, pair, surprise
from dgsgpt.model import GPT
from tests.model.tiny import VARIANTS, tiny_model

BYTES = ByteTokenizer()
TEXT = "It was the first time that she had seen him in the house — “of her uncle”. 雨 und Bäume, so many of them."


@lru_cache(maxsize=1)
def model() -> GPT:
    return tiny_model(vocab_size=256).eval()


def test_nats_are_minus_log_p_of_each_token_after_those_before_it() -> None:
    text = "It was so."
    ids = torch.tensor(BYTES.encode(text))
    found = surprise(model(), BYTES, text, likeliest=3)
    assert found.pieces[0].nats is None
    for place, piece in enumerate(found.pieces[1:], 1):
        with torch.no_grad():
            logits = model()(ids[None, :place]).logits[0, -1].double()
        shares = (logits - logits.max()).exp()
        shares /= shares.sum()
        assert piece.nats == pytest.approx(-math.log(shares[ids[place]]), abs=1e-4)
        assert piece.probability == pytest.approx(float(shares[ids[place]]), abs=1e-5)
        best = shares.topk(3).values.tolist()
        assert [share for _, share in piece.likeliest] == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize("kind", ["gqa", "shortcuts", "ngram", "all_new", "head_bias"])
def test_sums_are_those_of_the_evaluation_of_the_whole_text(kind: str) -> None:
    own = tiny_model(**{**VARIANTS[kind], "vocab_size": 256}).eval()
    found, scored = surprise(own, BYTES, TEXT), score_text(own, BYTES, TEXT, stride=24)
    assert (found.context, found.stride) == (48, 24)
    assert (found.tokens, found.bytes) == (scored.evaluation.tokens, scored.evaluation.bytes)
    assert found.loss == pytest.approx(scored.evaluation.loss, abs=1e-5)
    assert found.bpb == pytest.approx(scored.evaluation.bpb, abs=1e-5)
    assert found.ppl == pytest.approx(scored.evaluation.ppl, rel=1e-5)
    by_byte = dict(zip(scored.begins.tolist(), scored.nats.tolist(), strict=True))
    at = 0
    for piece in found.pieces:
        wanted = sum(by_byte.get(at + i, 0.0) for i in range(len(piece.ids)))
        assert (piece.nats or 0.0) == pytest.approx(wanted, abs=1e-4)
        at += len(piece.ids)


@given(st.text(min_size=2, max_size=60))
@settings(max_examples=15, deadline=None)
def test_pieces_are_whole_characters_that_add_up_to_the_text_and_to_the_total(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    found = surprise(model(), BYTES, text)
    assert "".join(piece.text for piece in found.pieces) == text
    assert [text[piece.start : piece.end] for piece in found.pieces] == list(text)
    assert sum(piece.nats or 0.0 for piece in found.pieces) == pytest.approx(found.nats)
    assert [i for piece in found.pieces for i in piece.ids] == BYTES.encode(text)
    assert found.characters == found.whole == len(text)
    costs = [piece.nats or 0.0 for piece in found.hardest(3)]
    assert costs == sorted((piece.nats for piece in found.pieces if piece.nats is not None), reverse=True)[:3]


def test_of_a_long_text_the_first_tokens_are_judged_and_whole_characters_only() -> None:
    found = surprise(model(), BYTES, "ab" + "雨" * 500, max_tokens=100)
    assert found.tokens == 97  # 2 + 32 * 3 bytes, the first of which nothing precedes
    assert (found.characters, found.whole) == (34, 502)
    assert found.pieces[-1].text == "雨"
    huge = surprise(model(), BYTES, "a" * 10_000, max_tokens=5)
    assert (huge.characters, huge.whole) == (5, 10_000)


def test_where_a_token_precedes_every_text_the_first_is_judged_too() -> None:
    class Begun(ByteTokenizer):
        @property
        def begin_of_text(self) -> int:
            return 7

    found = surprise(model(), Begun(), "abc")
    with torch.no_grad():
        logits = model()(torch.tensor([[7]])).logits[0, -1]
    assert found.tokens == 3
    assert found.pieces[0].nats == pytest.approx(float(-logits.log_softmax(-1)[ord("a")]), abs=1e-5)


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("a", "at least 2"), ("abz…", "'z', '…'")])
def test_texts_that_cannot_be_judged_are_one_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        surprise(tiny_model(vocab_size=3), CharTokenizer("abc"), text)


def test_damaged_weights_are_told() -> None:
    broken = tiny_model(vocab_size=256)
    torch.nn.init.constant_(broken.norm.weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(DgsgptError, match="not numbers"):
        surprise(broken, BYTES, "abc")


def test_plain_values_hold_every_piece() -> None:
    found = surprise(model(), BYTES, "so it was")
    told = found.to_dict()
    assert told["loss"] == pytest.approx(np.mean([p["nats"] for p in told["pieces"] if p["nats"] is not None]))
    assert [p["text"] for p in told["pieces"]] == list("so it was")
    assert told["pieces"][3]["likeliest"][0]["p"] >= told["pieces"][3]["likeliest"][1]["p"]


def test_two_are_paired_where_tokens_of_both_end() -> None:
    def judged(*parts: tuple[str, float | None]) -> Surprise:
        at, pieces = 0, []
        for text, nats in parts:
            pieces.append(Piece(text, at, at + len(text), (0,), nats))
            at += len(text)
        return Surprise(tuple(pieces), 1, 1, 1.0, 8, 8, at, at)

    a = judged(("It", None), (" wa", 1.0), ("s", 2.0), (" so", 3.0), (" it", 1.0))
    b = judged(("I", None), ("t w", 4.0), ("as", 0.5), (" so", 0.25))
    found = pair(a, b)
    assert [(one.text, one.start, one.end, one.a, one.b) for one in found] == [
        ("It was", 0, 6, None, None),
        (" so", 6, 9, 3.0, 0.25),
    ]
    assert [one.gap for one in found] == [0.0, 2.75]
    own = surprise(model(), BYTES, TEXT)
    assert all(one.gap == 0 for one in pair(own, own))
    assert sum(one.a or 0.0 for one in pair(own, own)) == pytest.approx(own.nats)
