"""GGUF files of the Llama family (llama, qwen2, qwen3), as llama.cpp and Ollama use them, read into our network.

Quantised weights become float32. llama.cpp turns neighbouring channels of Llama's queries and keys in pairs, ours turns
those half a head apart: the rows are put back in our order. Qwen's files have our order already.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dgsgpt.config import ModelConfig
from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError
from dgsgpt.interop.gguf_file import GgufFile
from dgsgpt.interop.gguf_tokenizer import build_tokenizer
from dgsgpt.interop.incoming import Incoming, Progress

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = ("llama", "qwen2", "qwen3")
ROPE_FACTORS = "rope_freqs.weight"
_TOP = {"token_embd.weight": "embed.weight", "output_norm.weight": "norm.weight", "output.weight": "head.weight"}
_PARTS = {
    "attn_norm": "norm1",
    "ffn_norm": "norm2",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_output": "attn.out",
    "attn_q_norm": "attn.q_norm",
    "attn_k_norm": "attn.k_norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")


def read_gguf(path: Path, progress: Progress | None = None) -> Incoming:
    """The model in the GGUF file `path`; calls `progress(what, share done)`.

    Raises:
        CheckpointError: the file is damaged, or its network is none that can be expressed here.
        DataError: its tokenizer cannot be rebuilt.
    """
    report = progress or (lambda stage, share: None)
    _check_library()
    with GgufFile(path) as file:
        report("reading the header", 0.0)
        source = shown(path)
        model = read_config(file, source)
        tokenizer, warnings = build_tokenizer(file.settings, source)
        if tokenizer.vocab_size > (model.vocab_size or 0):
            raise CheckpointError(
                f"{source}: its tokenizer has {tokenizer.vocab_size:,} tokens, its network {model.vocab_size:,}; the "
                "file is damaged"
            )
        tensors = _read_tensors(file, model, source, report)
        facts = _facts(file.settings)
    report("hashing", 0.9)
    with path.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    architecture = facts["architecture"]
    return Incoming(
        family=f"GGUF {architecture}",
        model=model,
        tensors=tensors,
        tokenizer=tokenizer,
        facts={**facts, "sha256": digest},
        warnings=warnings,
    )


def _check_library() -> None:
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise CheckpointError("GGUF files need the package gguf; install it with: pip install 'dgsgpt[gguf]'") from None


def _facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    facts = {name: settings.get(f"general.{name}") for name in ("architecture", "name", "license", "file_type")}
    return {name: value for name, value in facts.items() if isinstance(value, str | int)}


# ---------------------------------------------------------------- config
def read_config(file: GgufFile, source: str) -> ModelConfig:
    """The network that the metadata of an open file describe.

    Raises:
        CheckpointError: a setting is missing, or says something that has no counterpart here.
    """
    settings, tensors = _Settings(file.settings, source), file.tensors
    _refuse_unknown(settings, source)
    n_head, width = settings.whole("attention.head_count"), settings.whole("embedding_length")
    head_size = settings.whole("attention.key_length", width // n_head)
    if settings.whole("attention.value_length", head_size) != head_size:
        raise CheckpointError(f"{source}: its values are not as wide as its keys, which has no counterpart here")
    if settings.whole("rope.dimension_count", head_size) != head_size:
        raise CheckpointError(f"{source}: it rotates a part of each head only, which has no counterpart here")
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{source}: tensor token_embd.weight is missing; the file is not complete")
    values = {
        "n_layer": settings.whole("block_count"),
        "n_head": n_head,
        "n_kv_head": settings.whole("attention.head_count_kv", n_head),
        "n_embd": width,
        "head_size": None if head_size * n_head == width else head_size,
        "block_size": settings.whole("context_length"),
        "vocab_size": embedding.shape[0],
        "mlp": "swiglu",
        "mlp_hidden": settings.whole("feed_forward_length"),
        "norm": "rmsnorm",
        "norm_eps": settings.real("attention.layer_norm_rms_epsilon"),
        "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "qkv_bias": "with" if "blk.0.attn_q.bias" in tensors else "same",
        "tie_embeddings": "output.weight" not in tensors,
        "rope": {"theta": settings.real("rope.freq_base", 10_000.0), "scaling": _scaling(settings, source)},
    }
    return _with_rope_factors(file, _model(values, source), settings, source)


def _model(values: Mapping[str, Any], source: str) -> ModelConfig:
    try:
        return ModelConfig.model_validate(values)
    except ValidationError as e:
        problem = e.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "its settings"
        message = problem["msg"].removeprefix("Value error, ")
        raise CheckpointError(f"{source}: {where}: {message}: this model cannot be expressed here") from None


def _refuse_unknown(settings: _Settings, source: str) -> None:
    if settings.architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{source}: its architecture {shown(settings.architecture)} is not read; {', '.join(ARCHITECTURES)} are"
        )
    if settings.given.get("split.count", 0) not in (0, 1):
        raise CheckpointError(f"{source}: is one of several parts; join them with llama-gguf-split --merge")
    for name in ("expert_count", "attention.sliding_window", "attention.clamp_kqv", "logit_scale"):
        if settings.get(name):
            raise CheckpointError(f"{source}: {settings.architecture}.{name} is set, which is not read from GGUF files")


def _scaling(settings: _Settings, source: str) -> dict[str, Any] | None:
    kind = settings.get("rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind != "linear":
        raise CheckpointError(f"{source}: rope.scaling.type {shown(str(kind))} is not read from GGUF files, linear is")
    return {"kind": "linear", "factor": settings.real("rope.scaling.factor")}


def _with_rope_factors(file: GgufFile, model: ModelConfig, settings: _Settings, source: str) -> ModelConfig:
    """Llama 3.1's stretching, which a GGUF carries as one divisor for each pair of channels, by its parameters."""
    if ROPE_FACTORS not in file.tensors:
        return model
    import torch

    from dgsgpt.model.rope import frequencies

    divisors, rope = file.load(ROPE_FACTORS).flatten(), model.rope
    assert rope is not None
    if rope.scaling is None and divisors.numel() == model.head_dim // 2:
        wanted = rope.theta ** (-torch.arange(0, model.head_dim, 2) / model.head_dim) / divisors
        scaling = {"kind": "llama3", "factor": max(1.0, float(divisors.max())), "low_freq_factor": 1.0}
        for original in {8192, settings.whole("rope.scaling.original_context_length", 8192)}:
            if original > model.block_size:
                continue
            found = {**scaling, "high_freq_factor": 4.0, "original_block_size": original}
            values = {**model.model_dump(), "rope": {"theta": rope.theta, "scaling": found}}
            stretched = _model(values, source)
            assert stretched.rope is not None
            given = frequencies(stretched.rope, model.head_dim, model.block_size)("cpu")
            if torch.allclose(given, wanted, rtol=1e-4, atol=0.0):
                return stretched
    raise CheckpointError(f"{source}: its {ROPE_FACTORS} are not those of Llama 3.1, which has no counterpart here")


class _Settings:
    """The settings of one architecture, checked as they are asked for."""

    def __init__(self, given: Mapping[str, Any], source: str) -> None:
        self.given, self._source = given, source
        self.architecture = str(given.get("general.architecture"))

    def get(self, name: str, default: Any = None) -> Any:
        """A setting as it stands."""
        return self.given.get(f"{self.architecture}.{name}", default)

    def whole(self, name: str, default: int | None = None) -> int:
        """A whole number of at least one; a list of equal ones, one for each layer, counts as one."""
        value = self.get(name, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if type(value) is not int or value < 1:
            raise self._refused(name, value)
        return value

    def real(self, name: str, default: float | None = None) -> float:
        """A number."""
        value = self.get(name, default)
        if type(value) not in (int, float):
            raise self._refused(name, value)
        return float(value)

    def _refused(self, name: str, value: Any) -> CheckpointError:
        said = "is missing" if value is None else f"is {str(value)[:40]}, which cannot be read"
        return CheckpointError(f"{self._source}: {self.architecture}.{name} {said}")


# ---------------------------------------------------------------- tensors
def _read_tensors(file: GgufFile, model: ModelConfig, source: str, report: Progress) -> dict[str, Tensor]:
    _check_memory(file, source)
    permuted = file.settings["general.architecture"] == "llama"
    tensors: dict[str, Tensor] = {}
    for i, name in enumerate(file.tensors):
        report("reading the weights", 0.05 + 0.85 * i / len(file.tensors))
        if name == ROPE_FACTORS:
            continue
        own = _own_name(name, model.n_layer)
        if own is None:
            raise CheckpointError(f"{source}: tensor {shown(name)} has no counterpart here")
        tensor = file.load(name)
        heads = {"attn.q": model.n_head, "attn.k": model.n_kv_head}.get(own.split(".", 2)[-1].rsplit(".", 1)[0])
        tensors[own] = unpermute(tensor, heads, source) if permuted and heads else tensor
    return tensors


def _own_name(name: str, n_layer: int) -> str | None:
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _TOP.get(name)
    part = _PARTS.get(block[2])
    return f"blocks.{int(block[1])}.{part}.{block[3]}" if part and int(block[1]) < n_layer else None


def unpermute(rows: Tensor, heads: int, source: str) -> Tensor:
    """Rows [heads D, …] whose pairs (2 i, 2 i + 1) are rotated together, in the order that rotates (i, i + D / 2)."""
    if rows.size(0) % (2 * heads):
        raise CheckpointError(f"{source}: {rows.size(0)} rows of queries or keys do not make {heads} heads")
    pairs = rows.view(heads, -1, 2, *rows.shape[1:])
    return pairs.transpose(1, 2).reshape(rows.shape)


def _check_memory(file: GgufFile, source: str) -> None:
    import math

    import psutil

    needed = 4 * sum(math.prod(tensor.shape) for tensor in file.tensors.values())
    free = psutil.virtual_memory().available
    if needed > free:
        raise CheckpointError(
            f"{source}: its weights take {needed / 2**30:,.1f} GiB in float32, {free / 2**30:,.1f} GiB are free; "
            "use a smaller model"
        )
