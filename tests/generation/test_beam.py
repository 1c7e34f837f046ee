"""Beam search against transformers on the same weights, and against looking at every text there is."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from dgsgpt.config import ModelConfig
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.errors import DataError, DgsgptError
from dgsgpt.generation import BeamSettings, beam_search, generate, grow_beams
from dgsgpt.model import GPT
from tests.generation.test_engine import tiny
from tests.model.test_reference import OURS, SIZES, load_llama_like

ALPHABET = "".join(chr(0x4E00 + i) for i in range(71))


class EndingTokenizer(CharTokenizer):
    """Some of its ids end a text."""

    ends_of_text = (3, 9)  # type: ignore[assignment]


class OneEndTokenizer(CharTokenizer):
    """One of its ids ends a text."""

    ends_of_text = (5,)  # type: ignore[assignment]


def pair(seed: int, end: float = 1.0) -> tuple[Any, GPT]:
    """A Llama of transformers and ours with its weights; a larger `end` makes tokens that end a text likelier."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    theirs = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    with torch.no_grad():
        for token in (3, 5, 9):
            theirs.lm_head.weight[token] *= end
    return theirs, load_llama_like(GPT(ModelConfig.model_validate(OURS)), theirs)


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6, 1.0, 2.5])
@pytest.mark.parametrize("tokenizer", [EndingTokenizer, OneEndTokenizer, CharTokenizer])
def test_beams_equal_those_of_transformers(penalty: float, early: Any, tokenizer: type[CharTokenizer]) -> None:
    known = tokenizer(ALPHABET)
    ended = 0
    for seed, beams in ((1, 4), (2, 3), (4, 6)):
        theirs, ours = pair(seed, end=2.0)
        prompt = torch.randint(10, 71, (1, 7), generator=torch.Generator().manual_seed(seed))
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), num_beams=beams, num_return_sequences=beams,
            max_new_tokens=12, do_sample=False, length_penalty=penalty, early_stopping=early, pad_token_id=1,
            eos_token_id=list(known.ends_of_text) or None, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        found = beam_search(
            ours, known, known.decode(prompt[0].tolist()), n_beams=beams, max_new_tokens=12, length_penalty=penalty,
            early_stopping=early,
        )  # fmt: skip
        assert len(found) == beams
        for beam, ids, score in zip(found, expected.sequences, expected.sequences_scores, strict=True):
            assert beam.ids == ids[7 : 7 + len(beam.ids)].tolist()
            assert bool((ids[7 + len(beam.ids) :] == 1).all())  # padding
            assert beam.score == pytest.approx(float(score), rel=1e-4, abs=1e-4)
            assert beam.score == pytest.approx(beam.logprob / len(beam.ids) ** penalty)
            assert beam.finished == (beam.ids[-1] in known.ends_of_text)
            ended += beam.finished
    assert ended > 0 or not known.ends_of_text


def all_texts(model: GPT, prompt: list[int], vocab: int, longest: int, ends: tuple[int, ...]) -> dict[Any, float]:
    """Every text of at most `longest` tokens with its log-probability: those that end, and those cut off."""
    found: dict[Any, float] = {}
    texts = torch.tensor(list(itertools.product(range(vocab), repeat=longest)))
    with torch.no_grad():
        whole = torch.cat((torch.tensor([prompt]).expand(len(texts), -1), texts), dim=1)
        logs = torch.log_softmax(model(whole).logits[:, len(prompt) - 1 : -1, :vocab].double(), -1)
    for text, steps in zip(texts.tolist(), logs, strict=True):
        length = next((i + 1 for i, token in enumerate(text) if token in ends), longest)
        found[tuple(text[:length])] = sum(float(steps[i, text[i]]) for i in range(length))
    return found


@pytest.mark.parametrize("penalty", [-0.5, 0.0, 1.0, 3.0])
@pytest.mark.parametrize("ends", [(), (2,), (0, 3)])
def test_enough_beams_find_the_best_of_all_texts(penalty: float, ends: tuple[int, ...]) -> None:
    model, tokenizer = tiny(block_size=32), CharTokenizer("abcd")
    tokenizer.__class__ = type("Ending", (CharTokenizer,), {"ends_of_text": ends})
    texts = all_texts(model, tokenizer.encode("abca"), 4, 4, ends)
    expected = sorted(((p / len(ids) ** penalty, ids) for ids, p in texts.items()), reverse=True)
    found = beam_search(
        model, tokenizer, "abca", n_beams=256, max_new_tokens=4, length_penalty=penalty, early_stopping="never"
    )
    assert len(found) == len(expected)
    assert [tuple(beam.ids) for beam in found] == [ids for _, ids in expected]
    assert [beam.score for beam in found] == pytest.approx([score for score, _ in expected], rel=1e-5)


def test_more_beams_than_tokens_are_never_copies_of_each_other() -> None:
    found = beam_search(tiny(), CharTokenizer("abc"), "ab", n_beams=20, max_new_tokens=3)
    assert len({tuple(beam.ids) for beam in found}) == len(found) == 20
    assert len(beam_search(tiny(), CharTokenizer("abc"), "ab", n_beams=20, max_new_tokens=1)) == 3
    assert len(beam_search(tiny(), CharTokenizer("abc"), "ab", n_beams=20, max_new_tokens=3, n_best=2)) == 2


def test_one_beam_is_the_greedy_text_also_past_the_context() -> None:
    gpt, tokenizer = tiny(block_size=8, window={"size": 3, "pattern": "SL"}), CharTokenizer("abcdefghijkl")
    text = generate(gpt, tokenizer, "abc", temperature=0, max_new_tokens=30)
    assert [beam.text for beam in beam_search(gpt, tokenizer, "abc", n_beams=1, max_new_tokens=30)] == [text]


def test_past_the_context_each_beam_is_re_anchored_on_its_own_text() -> None:
    gpt, tokenizer, size = tiny(block_size=8, rope=None), CharTokenizer("abcdefghijkl"), 8
    found = beam_search(gpt, tokenizer, "abc", n_beams=5, max_new_tokens=20)
    for beam in found:
        context, total = tokenizer.encode("abc"), 0.0
        for token in beam.ids:
            with torch.no_grad():
                logs = torch.log_softmax(gpt(torch.tensor([context])).logits[0, -1, :12].double(), 0)
            total += float(logs[token])
            context = [*context, token]
            if len(context) > size:
                context = context[-size // 2 :]
        assert beam.logprob == pytest.approx(total, rel=1e-5)


def test_the_tree_holds_the_path_of_every_beam_and_what_was_given_up() -> None:
    gpt, tokenizer = tiny(block_size=32), EndingTokenizer("abcdefghijkl")
    steps: list[tuple[int, int]] = []
    result = grow_beams(gpt, tokenizer, "abc", BeamSettings(n_beams=3, max_new_tokens=6), lambda *a: steps.append(a))
    tree = result.tree
    for beam in result.beams:
        ids, at = [], beam.node
        assert (tree[at].state, tree[at].logprob, tree[at].depth) == ("finished", beam.logprob, len(beam.ids))
        while True:
            ids.append(tree[at].token)
            parent = tree[at].parent
            if parent is None:
                break
            assert parent < at
            assert tree[parent].state == "alive"
            assert tree[parent].logprob >= tree[at].logprob
            at = parent
        assert ids[::-1] == beam.ids
    for depth in range(1, result.tokens + 1):
        at_depth = [node for node in tree if node.depth == depth]
        assert sum(node.state == "alive" for node in at_depth) == (3 if depth < 6 else 0)
        assert len({(node.parent, node.token) for node in at_depth}) == len(at_depth) == 9
    assert steps == [(i + 1, 6) for i in range(result.tokens)]
    assert 0 < result.first_token_s <= result.seconds


def test_the_end_of_a_text_is_not_shown_and_a_cut_character_neither() -> None:
    gpt = tiny(block_size=32)
    for beam in beam_search(gpt, EndingTokenizer("abcdefghijkl"), "abc", n_beams=4, max_new_tokens=8):
        shown = beam.ids[:-1] if beam.finished else beam.ids
        assert beam.text == CharTokenizer("abcdefghijkl").decode(shown)
    for beam in beam_search(gpt, ByteTokenizer(), "abc", n_beams=4, max_new_tokens=3):
        assert bytes(beam.ids).decode("utf-8", "replace").startswith(beam.text)


def test_an_interrupted_search_leaves_the_model_as_it_was() -> None:
    def interrupt(done: int, most: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    gpt = tiny().train()
    with pytest.raises(KeyboardInterrupt):
        grow_beams(gpt, CharTokenizer("abc"), "a", BeamSettings(), interrupt)
    assert gpt.training
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    "settings",
    [
        {"n_beams": 0},
        {"n_beams": 1001},
        {"n_beams": 2.0},
        {"max_new_tokens": 0},
        {"length_penalty": float("nan")},
        {"length_penalty": 11},
        {"length_penalty": "long"},
        {"early_stopping": "always"},
        {"early_stopping": 1},
        {"n_best": 0},
        {"n_best": 5},
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(DgsgptError) as e:
        beam_search(tiny(), CharTokenizer("abc"), "a", **settings)
    assert str(e.value).startswith(f"{next(iter(settings))}=")
    assert "\n" not in str(e.value)


def test_what_cannot_be_searched_is_refused_in_a_line() -> None:
    with pytest.raises(DgsgptError, match="n_beam"):
        beam_search(tiny(), CharTokenizer("abc"), "a", beams=3)
    with pytest.raises(DgsgptError, match="prompt is empty"):
        beam_search(tiny(), CharTokenizer("abc"), "")
    with pytest.raises(DataError, match="'é'"):
        beam_search(tiny(), CharTokenizer("abc"), "é")
    with pytest.raises(DgsgptError, match="has 400 tokens but the model only 256"):
        beam_search(tiny(), CharTokenizer("".join(map(chr, range(1000, 1400)))), "Ϩ")
    gpt = tiny()
    with torch.no_grad():
        next(gpt.parameters()).fill_(torch.nan)
    with pytest.raises(DgsgptError, match="not numbers"):
        beam_search(gpt, CharTokenizer("abc"), "a")
