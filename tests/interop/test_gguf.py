"""GGUF files: the logits of the model they were made from, its tokenizer, and bad files named in one line."""

from __future__ import annotations

import itertools
import math
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgsgpt.data import corpora
from dgsgpt.data.bpe import BYTE_OF, load_gpt2, train_bpe
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.errors import CheckpointError, DataError, DgsgptError
from dgsgpt.interop import gguf_tokenizer
from dgsgpt.interop.gguf import read_gguf
from dgsgpt.interop.gguf_file import GgufFile
from dgsgpt.interop.gguf_tokenizer import KEY, build_tokenizer
from dgsgpt.interop.incoming import Incoming
from dgsgpt.model import GPT
from tests.data.test_tokenizer import TEXTS

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

CONTROL, NORMAL, UNKNOWN, BYTE = 3, 1, 2, 6
SIZES = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64, "hidden": 96, "context": 64}
END = "<|end|>"


def small_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE, with one control token at the end."""
    made = train_bpe(corpora.read_text("austen")[:40_000], 320)
    merges = made.vocab()["merges"]
    tokens = [*BYTE_OF, *(line.replace(" ", "") for line in merges)]
    return [*tokens, END], merges


TOKENS, MERGES = small_vocabulary()


def make_llama(architecture: str, **config: Any) -> Any:
    """A random model of transformers, with weights large enough to tell right from wrong."""
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[architecture]
    torch.manual_seed(1)
    shape = {"hidden_size": SIZES["n_embd"], "intermediate_size": SIZES["hidden"], "vocab_size": len(TOKENS)}
    heads = {"num_attention_heads": SIZES["n_head"], "num_key_value_heads": SIZES["n_kv_head"]}
    depth = {"num_hidden_layers": SIZES["n_layer"], "max_position_embeddings": SIZES["context"]}
    known = {"rms_norm_eps": 1e-6, "initializer_range": 0.2, "tie_word_embeddings": False}
    made = getattr(transformers, f"{name}Config")(**{**shape, **heads, **depth, **known, **config})
    model = getattr(transformers, f"{name}ForCausalLM")(made).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def permuted(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """As llama.cpp's conversion does it: the halves of each head, interleaved."""
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        index, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{index}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def write(
    path: Path,
    model: Any,
    kind: str = "F32",
    change: Callable[[Any], None] = lambda writer: None,
    rope_factors: np.ndarray[Any, Any] | None = None,
) -> Path:
    architecture = model.config.model_type
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(SIZES["n_layer"])
    writer.add_context_length(model.config.max_position_embeddings)
    writer.add_embedding_length(SIZES["n_embd"])
    writer.add_feed_forward_length(SIZES["hidden"])
    writer.add_head_count(SIZES["n_head"])
    writer.add_head_count_kv(SIZES["n_kv_head"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_key_length(model.config.head_dim if architecture != "qwen2" else SIZES["n_embd"] // SIZES["n_head"])
    add_vocabulary(writer)
    change(writer)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    for name, tensor in state.items():
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = permuted(tensor, SIZES["n_head" if "q_proj" in name else "n_kv_head"])
        add_tensor(writer, gguf_name(name), np.ascontiguousarray(tensor), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tensor(writer: Any, name: str, tensor: np.ndarray[Any, Any], kind: str) -> None:
    if kind == "F32" or tensor.ndim == 1:
        writer.add_tensor(name, tensor)
        return
    qtype = gguf.GGMLQuantizationType[kind]
    writer.add_tensor(name, gguf.quants.quantize(tensor, qtype), raw_dtype=qtype)


def add_vocabulary(writer: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([NORMAL] * (len(TOKENS) - 1) + [CONTROL])
    writer.add_token_merges(MERGES)
    writer.add_eos_token_id(len(TOKENS) - 1)


def built(incoming: Incoming) -> GPT:
    model = GPT(incoming.model).eval()
    model.load_state_dict(dict(incoming.tensors))
    return model


def logits_of(model: Any, incoming: Incoming) -> tuple[torch.Tensor, torch.Tensor]:
    """[2, 40, V] of transformers and of ours."""
    tokens = torch.randint(len(TOKENS), (2, 40), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = built(incoming)(tokens).logits
        assert ours is not None
        return model(tokens).logits, ours


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "wide heads": ("llama", {"head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
}


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_the_model_it_was_made_from(name: str, tmp_path: Path) -> None:
    architecture, config = MODELS[name]
    model = make_llama(architecture, **config)
    incoming = read_gguf(write(tmp_path / "m.gguf", model))
    theirs, ours = logits_of(model, incoming)
    assert theirs.std() > 0.5
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert incoming.model.tie_embeddings is (name == "tied")
    assert incoming.family == f"GGUF {architecture}"
    assert len(incoming.facts["sha256"]) == 64


def test_rows_left_in_llama_cpps_order_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_llama("llama")
    path = write(tmp_path / "m.gguf", model)
    monkeypatch.setattr("dgsgpt.interop.gguf.unpermute", lambda rows, heads, source: rows)
    theirs, ours = logits_of(model, read_gguf(path))
    assert (ours - theirs).abs().max() > 0.1


# Root mean square error over that of the weights: of a uniform grid, its step over the square root of twelve.
TOLERANCES = {"F16": 3e-4, "BF16": 2e-3, "Q8_0": 0.01, "Q5_1": 0.06, "Q4_1": 0.1, "Q4_0": 0.12}


@pytest.mark.parametrize(("kind", "tolerance"), TOLERANCES.items())
def test_quantised_weights_are_within_the_error_of_their_type(kind: str, tolerance: float, tmp_path: Path) -> None:
    model = make_llama("llama")
    exact = read_gguf(write(tmp_path / "exact.gguf", model))
    read = read_gguf(write(tmp_path / "m.gguf", model, kind))
    for name, tensor in exact.tensors.items():
        error = ((read.tensors[name] - tensor).square().mean() / tensor.square().mean()).sqrt()
        assert (error == 0) if tensor.ndim == 1 else (0 < error < tolerance), name
    theirs, ours = logits_of(model, read)
    assert (ours - theirs).square().mean().sqrt() < 10 * tolerance * theirs.square().mean().sqrt()


def test_linear_stretching_is_translated(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}
    model = make_llama("llama", rope_parameters=rope)

    def stretch(writer: Any) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    theirs, ours = logits_of(model, read_gguf(write(tmp_path / "m.gguf", model, change=stretch)))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def llama3_divisors(head_dim: int, original: int = 8192) -> np.ndarray[Any, Any]:
    """By `apply_scaling` of Llama 3.1, as what each frequency is divided by."""
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * 10_000.0 ** (i / head_dim)
        if wavelength < original / 4:
            divisors.append(1.0)
        elif wavelength > original / 1:
            divisors.append(8.0)
        else:
            smooth = (original / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / 8 + smooth))
    return np.array(divisors)


def test_the_stretching_of_llama_3_1_is_found_in_its_divisors(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 10_000.0}
    context = {"max_position_embeddings": 16_384}
    model = make_llama("llama", rope_parameters=rope, head_dim=64, **context)
    divisors = llama3_divisors(64)
    assert np.unique(divisors).size > 1
    incoming = read_gguf(write(tmp_path / "m.gguf", model, rope_factors=divisors))
    assert incoming.model.rope is not None
    assert incoming.model.rope.scaling is not None
    assert incoming.model.rope.scaling.kind == "llama3"
    theirs, ours = logits_of(model, incoming)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with pytest.raises(CheckpointError, match=r"not those of Llama 3\.1"):
        read_gguf(write(tmp_path / "other.gguf", model, rope_factors=divisors * 1.01))


# ---------------------------------------------------------------- tokenizers
def settings_of(**changes: Any) -> dict[str, Any]:
    given = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": TOKENS,
        "token_type": [NORMAL] * (len(TOKENS) - 1) + [CONTROL],
        "merges": MERGES,
        "eos_token_id": len(TOKENS) - 1,
        "bos_token_id": len(TOKENS) - 1,
    }
    return {KEY + name: value for name, value in {**given, **changes}.items()}


@pytest.mark.parametrize("pre", sorted(gguf_tokenizer._SPLITS))
@settings(deadline=None, max_examples=50)
@given(text=TEXTS)
def test_every_known_splitting_round_trips(pre: str, text: str) -> None:
    import unicodedata

    tokenizer, _ = cached_tokenizer(pre)
    kept = unicodedata.normalize("NFC", text) if pre in ("qwen2", "deepseek-r1-qwen", "megrez") else text
    assert tokenizer.decode(tokenizer.encode(text)) == kept
    assert [i for chunk in tokenizer.chunks(text) for i in tokenizer.encode(chunk)] == tokenizer.encode(text)


_BUILT: dict[str, tuple[Tokenizer, tuple[str, ...]]] = {}


def cached_tokenizer(pre: str) -> tuple[Tokenizer, tuple[str, ...]]:
    if pre not in _BUILT:
        _BUILT[pre] = build_tokenizer(settings_of(pre=pre), "x")
    return _BUILT[pre]


def test_digits_are_split_as_the_name_says() -> None:
    digits = {"tokens": [*BYTE_OF, "12", "34", "1234", END], "merges": ["1 2", "3 4", "12 34"]}
    around = {"token_type": [NORMAL] * 260, "eos_token_id": None, "bos_token_id": None}
    pieces = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2", "default"):
        made = build_tokenizer(settings_of(pre=pre, **digits, **around), "x")[0]
        pieces[pre] = [made.token_bytes(i).decode() for i in made.encode("1234")]
    assert pieces["gpt-2"] == ["1234"]
    assert pieces["smollm"] == pieces["qwen2"] == ["1", "2", "3", "4"]
    assert pieces["llama-bpe"] == pieces["default"] == ["12", "3", "4"]


def test_control_tokens_are_no_text_and_a_missing_name_is_said() -> None:
    tokenizer, warnings = build_tokenizer(settings_of(), "x")
    assert warnings == ()
    assert tokenizer.end_of_text == len(TOKENS) - 1
    assert tokenizer.begin_of_text is None
    assert tokenizer.end_of_text not in tokenizer.encode(f"a{END}")
    assert build_tokenizer(settings_of(pre="llama-bpe"), "x")[0].begin_of_text == len(TOKENS) - 1
    assert build_tokenizer(settings_of(add_bos_token=True), "x")[0].begin_of_text == len(TOKENS) - 1
    unnamed = settings_of()
    del unnamed[KEY + "pre"]
    assert "does not name" in build_tokenizer(unnamed, "x")[1][0]


def test_gpt2_in_a_gguf_is_our_gpt2() -> None:
    merges = load_gpt2().vocab()["merges"]
    tokens = [*BYTE_OF, *(line.replace(" ", "") for line in merges), "<|endoftext|>"]
    kinds = [NORMAL] * (len(tokens) - 1) + [CONTROL]
    given = settings_of(pre="gpt-2", tokens=tokens, merges=merges, token_type=kinds, eos_token_id=len(tokens) - 1)
    assert build_tokenizer(given, "x")[0].sha256 == load_gpt2().sha256


def scored() -> dict[str, Any]:
    """A vocabulary as SentencePiece gives it: pieces with scores, the best first, and all bytes."""
    words = ["▁the", "▁t", "he", "in", "▁a", "er", "▁w", "ou", "▁wor", "or", "ld", "▁world", "▁▁", "▁he", "the"]
    letters = [*dict.fromkeys("▁" + "".join(words) + "abcdefghijklmnopqrstuvwxyz")]
    letters = [letter for letter in letters if len(letter) == 1]
    octets = [f"<0x{value:02X}>" for value in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *octets, *words, *letters]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words))] + [-1000.0 - i for i in range(len(letters))]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(words) + len(letters))
    about = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return settings_of(model="llama", tokens=tokens, scores=scores, token_type=kinds, **about)


def greedy_by_score(given: dict[str, Any], text: str) -> list[bytes]:
    """SentencePiece's BPE as it is written: join the neighbours with the best score, the leftmost first."""
    score = dict(zip(given[KEY + "tokens"], given[KEY + "scores"], strict=True))
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joined = enumerate(a + b for a, b in itertools.pairwise(parts))
        known = [(score[piece], -i) for i, piece in joined if piece in score]
        if not known:
            break
        at = -max(known)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    pieces: list[bytes] = []
    for part in parts:
        octets = part.encode()
        pieces += [part.replace("▁", " ").encode()] if part in score else [bytes([octet]) for octet in octets]
    return pieces


SAMPLES = ["the", " ", "wor", "ld", "he", "in", "a", "our", "é", "🙂", "x", "\n", "t"]
PIECES = st.lists(st.sampled_from(SAMPLES), max_size=25)


@settings(deadline=None, max_examples=300)
@given(PIECES.map("".join))
def test_scores_give_the_tokens_of_sentencepiece(text: str) -> None:
    given = scored()
    tokenizer = _BUILT.setdefault("scored", build_tokenizer(given, "x"))[0]
    ids = tokenizer.encode(text)
    assert [tokenizer.token_bytes(i) for i in ids] == greedy_by_score(given, text)
    assert tokenizer.decode(ids) == text
    assert (tokenizer.begin_of_text, tokenizer.end_of_text) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "bert"}, "gpt2 and llama can"),
        ({"pre": "klingon"}, "'klingon', is not known"),
        ({"tokens": TOKENS[:-1] + TOKENS[:1]}, "twice"),
        ({"tokens": TOKENS[:-1]}, "rebuilt"),
        ({"tokens": 3}, "no list of tokens"),
        ({"merges": ["nothing here"]}, "rebuilt"),
        ({"merges": None}, "rebuilt"),
        ({"eos_token_id": 10_000}, "outside its vocabulary"),
    ],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        build_tokenizer(settings_of(**changes), "m.gguf")
    assert "\n" not in str(caught.value)
    assert "m.gguf" in str(caught.value)


# ---------------------------------------------------------------- bad files
@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("good") / "m.gguf", make_llama("llama"))


def refused(path: Path, why: str) -> None:
    with pytest.raises(DgsgptError, match=why) as caught:
        read_gguf(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


def test_a_file_cut_anywhere_is_refused(good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    for at in [0, 3, 4, 8, 20, 24, *range(30, len(raw) - 1, len(raw) // 40), len(raw) - 40]:
        (tmp_path / "cut.gguf").write_bytes(raw[:at])
        refused(tmp_path / "cut.gguf", "cannot be read|cut off|damaged|no GGUF|complete")


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (lambda raw: b"GGML" + raw[4:], "no GGUF file"),
    "version": (lambda raw: raw[:4] + struct.pack("<I", 9) + raw[8:], "version 9"),
    "big-endian": (lambda raw: raw[:4] + struct.pack(">I", 3) + raw[8:], "big-endian"),
    "tensors": (lambda raw: raw[:8] + struct.pack("<Q", 1 << 60) + raw[16:], "tensors, more than"),
    "settings": (lambda raw: raw[:16] + struct.pack("<Q", 1 << 60) + raw[24:], "settings, more than"),
    "text": (lambda raw: raw[:24] + struct.pack("<Q", 1 << 62) + raw[32:], "promises"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.timeout(300)
def test_a_header_that_promises_too_much_is_refused_at_once(name: str, good: Path, tmp_path: Path) -> None:
    spoil, why = BROKEN[name]
    (tmp_path / "bad.gguf").write_bytes(spoil(good.read_bytes()))
    refused(tmp_path / "bad.gguf", why)


def test_a_list_of_nothing_that_is_endless_is_refused(tmp_path: Path) -> None:
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 0, 1 << 40)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    refused(tmp_path / "bad.gguf", "items of a setting")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_changed_byte_in_the_header_is_refused_or_read_never_a_crash(data: st.DataObject) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"dgsgpt-test-{os.getpid()}.gguf"
    header = struct.pack("<IQQ", 3, 1, 2)
    header += struct.pack("<Q", 1) + b"a" + struct.pack("<II", 4, 7)
    header += struct.pack("<Q", 1) + b"b" + struct.pack("<IIQ", 9, 8, 1) + struct.pack("<Q", 2) + b"xy"
    header += struct.pack("<Q", 1) + b"t" + struct.pack("<IQQIQ", 2, 4, 3, 0, 0)
    raw = bytearray(b"GGUF" + header + bytes(32 - (len(header) + 4) % 32) + bytes(48))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    said = ""
    try:
        with GgufFile(path) as file:
            shapes = {name: file.load(name).shape for name in file.tensors}
            assert all(math.prod(shape) <= len(raw) for shape in shapes.values())
    except CheckpointError as e:
        said = str(e)
    finally:
        path.unlink()
    assert "\n" not in said


def changed(name: str, value: Any) -> Callable[[Any], None]:
    def change(writer: Any) -> None:
        for fields in writer.kv_data:
            fields.pop(name, None)
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)

    return change


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("general.architecture", "mamba", "mamba is not read"),
        ("llama.block_count", None, "block_count is missing"),
        ("llama.block_count", 3, "complete|no weights"),
        ("llama.block_count", 1, "no counterpart"),
        ("llama.attention.head_count_kv", 3, "must divide"),
        ("llama.expert_count", 8, "expert_count is set"),
        ("llama.rope.dimension_count", 8, "part of each head"),
        ("llama.rope.scaling.type", "yarn", "yarn is not read"),
        ("llama.embedding_length", "wide", "cannot be read"),
        ("split.count", 3, "several parts"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(name: str, value: Any, why: str, tmp_path: Path) -> None:
    from dgsgpt.interop.keep import check_tensors

    path = write(tmp_path / "m.gguf", make_llama("llama"), change=changed(name, value))
    with pytest.raises(CheckpointError, match=why) as caught:
        check_tensors(read_gguf(path), path)
    assert "\n" not in str(caught.value)


def test_a_tensor_of_an_unknown_type_is_named(good: Path, tmp_path: Path) -> None:
    raw = good.read_bytes()
    at = raw.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    (tmp_path / "bad.gguf").write_bytes(raw[:at] + struct.pack("<I", 77) + raw[at + 4 :])
    refused(tmp_path / "bad.gguf", r"blk\.0\.attn_q\.weight is of type 77")


def test_without_the_package_the_remedy_is_said(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"pip install 'dgsgpt\[gguf\]'"):
        read_gguf(good)


@pytest.mark.timeout(300)
def test_a_pipe_or_a_folder_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    refused(tmp_path / "pipe.gguf", "no such file")
    (tmp_path / "folder.gguf").mkdir()
    refused(tmp_path / "folder.gguf", "no such file")


# ---------------------------------------------------------------- a real model
SMOLLM2 = os.environ.get("DGSGPT_SMOLLM2")


@pytest.mark.skipif(SMOLLM2 is None, reason="DGSGPT_SMOLLM2 does not name SmolLM2-135M-Instruct.Q4_1.gguf")
@pytest.mark.timeout(900)
def test_smollm2_knows_the_capital_of_france_and_austen() -> None:
    incoming = read_gguf(Path(str(SMOLLM2)))
    with torch.device("meta"):
        model = GPT(incoming.model)
    model.load_state_dict(dict(incoming.tensors), assign=True)
    model.eval()
    tokenizer = incoming.tokenizer
    prompt = tokenizer.encode("The capital of France is")
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(2):
            logits = model(torch.tensor([tokens])).logits
            assert logits is not None
            tokens.append(int(logits[0, -1].argmax()))
        assert tokenizer.decode(tokens[len(prompt) :]) == " Paris."
        # Rows of queries and keys in the wrong order give 153 in place of 32.
        window = tokenizer.encode(corpora.read_text("austen")[1_000_000:1_006_000])[:513]
        loss = model(torch.tensor([window[:-1]]), torch.tensor([window[1:]])).loss
    assert loss is not None
    assert math.exp(loss) == pytest.approx(31.7, abs=0.5)
    bits = 512 * float(loss) / math.log(2) / int(tokenizer.byte_lengths[window[1:]].sum())
    assert bits == pytest.approx(1.089, abs=0.005)
