"""Token-by-token writing on a CPU by compiled code: all that one new token of one text needs, in one call.

A token is some two hundred of torch's operators on vectors of a few hundred numbers; starting them takes longer than
computing them. `decode.c` runs whole blocks on the memory of weights and cache instead. It has one thread: a row times
a matrix is as fast as memory gives the matrix, and threads that wait for each other at dozens of small products suffer
wherever something else runs. Embeddings and experts stay torch's. It is compiled in a fraction of a second, once a
process, by the C compiler that `torch.compile` needs, too; without one, torch's operators do everything.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from ctypes import c_float, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.model.cache import FullBuffer, KVCache
from dgsgpt.model.gpt import GPT, Block, ThreePartBlock
from dgsgpt.model.loss import softcap
from dgsgpt.model.mlp import MLP, GatedMLP
from dgsgpt.model.norm import LayerNorm, RMSNorm
from dgsgpt.model.pages import gather
from dgsgpt.model.rope import Rotation
from dgsgpt.model.shortcuts import Mix

SOURCE = Path(__file__).with_name("decode.c")
# Of OpenMP the vectors alone, no threads: torch has its own.
_FLAGS = ("-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-std=c99", "-shared", "-fPIC")
_MOST_NUMBERS = 2**22  # larger matrices are worth several threads, which torch's product has on some processors
_LAYERS = (nn.Linear, RMSNorm, LayerNorm)  # of other types, as those of quantized weights, torch knows what they do
_PLAIN = (Tensor, nn.Parameter)  # of subclasses, as in fake mode, there may be no memory to read
_ACTIVATIONS = {"gelu": 0, "relu": 1, "relu2": 2, "swiglu": 3}
_AHEAD = 128  # positions whose rotations are computed at once
_PARTS = ("norm1", "q", "k", "v", "q_norm", "k_norm", "out", "norm2", "gate", "up", "down")
_SIZES = ("width", "heads", "kv_heads", "head_dim", "hidden", "vocab", "layernorm", "activation")
_ROOMS = ("normed", "first", "first_values", "q", "attended", "k", "v", "gate", "up", "scores")


class _Affine(ctypes.Structure):
    _fields_ = (("weight", c_void_p), ("bias", c_void_p))


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, _Affine) for name in _PARTS), ("stream_mix", c_void_p), ("value_mix", c_void_p),
        ("keys", c_void_p * 2), ("values", c_void_p * 2), ("room", c_int64 * 2), ("windows", c_int64),
    )  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = (
        ("blocks", ctypes.POINTER(_Block)), ("norm", _Affine), ("head", _Affine), ("cos", c_void_p), ("sin", c_void_p),
        *((name, c_int64) for name in _SIZES), ("eps", c_float), *((name, c_void_p) for name in _ROOMS),
    )  # fmt: skip


class Library(NamedTuple):
    """The compiled code, None where there is none, and where it comes from or why there is none."""

    code: ctypes.CDLL | None
    origin: str


@lru_cache(maxsize=1)
def load() -> Library:
    """Compile `decode.c` and load it."""
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang"))), None)
    if compiler is None:
        return Library(None, "no C compiler found")
    with tempfile.TemporaryDirectory(prefix="dgsgpt-native-", ignore_cleanup_errors=True) as folder:
        library = Path(folder, "decode.so")
        command = [compiler, *_FLAGS, str(SOURCE), "-o", str(library), "-lm"]
        try:
            subprocess.run(command, capture_output=True, check=True, timeout=30)
            code = ctypes.CDLL(str(library))
            code.run_blocks.argtypes = [c_void_p, c_int64, c_int64, c_int64, c_void_p]
            code.judge.argtypes = [c_void_p] * 3
        except (OSError, subprocess.SubprocessError, AttributeError):
            return Library(None, f"{compiler} could not compile it")
    code.run_blocks.restype = code.judge.restype = None
    return Library(code, f"made by {compiler}")


def describe() -> str:
    """What computes single tokens on this machine, and why."""
    code, origin = load()
    return f"compiled code ({origin})" if code else f"torch's operators ({origin})"


def native_step(model: nn.Module, cache: KVCache) -> NativeStep | None:
    """The compiled step of `model` with `cache`; None where torch must compute it.

    Compiled code is for one row of float32 numbers in a CPU's memory, in a model whose parts are as they were built:
    not quantized, wrapped, trained or computed in another type.
    """
    if type(model) is not GPT or model.training or len(cache.recent) != 1 or torch.is_autocast_enabled("cpu"):
        return None
    if not all(type(block) in (Block, ThreePartBlock) for block in model.blocks):
        return None
    blocks = [_layers(block) for block in model.blocks]
    if not all(type(layer) in _LAYERS for layers in blocks for layer in [model.norm, *layers.values()]):
        return None
    weights = [p for layers in blocks for layer in layers.values() for p in layer.parameters()]
    buffers = [x for buffer in cache.buffers() for x in (buffer.k, buffer.v)]
    if any(p.numel() > _MOST_NUMBERS for p in weights):
        return None
    if not all(map(_is_readable, [*weights, *buffers, *model.norm.parameters(), model.embed.weight])):
        return None
    code = load().code
    if code is None:
        return None
    gather([*weights, model.head.matrix(model.embed.weight)])
    return NativeStep(model, cache, code)


def _is_readable(x: Tensor) -> bool:
    return type(x) in _PLAIN and x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()


def _layers(block: nn.Module) -> dict[str, nn.Module]:
    """The layers of a block that `decode.c` computes, by their names there."""
    assert isinstance(block, Block)
    attn, mlp = block.attn, block.mlp
    found = {"norm1": block.norm1, "q": attn.q, "k": attn.k, "v": attn.v, "out": attn.out}
    if not isinstance(attn.q_norm, nn.Identity):
        found |= {"q_norm": attn.q_norm, "k_norm": attn.k_norm}
    if isinstance(mlp, MLP | GatedMLP):
        found |= {"norm2": block.norm2, "up": mlp.up, "down": mlp.down}
    return found | {"gate": mlp.gate} if isinstance(mlp, GatedMLP) else found


class NativeStep:
    """Logits of the next token, computed by compiled code from the memory of a model and its cache.

    It is for one context, and one thread at a time. Pre-hooks of the model are called as in a forward pass of its own.
    """

    def __init__(self, model: GPT, cache: KVCache, code: ctypes.CDLL) -> None:
        self._model, self._cache, self._code = model, cache, code
        self._read: list[Tensor] = []  # whatever has an address in the structs, which so stays in memory
        self._blocks = (_Block * len(model.blocks))(*map(self._block, model.blocks, cache.layers))
        self._state = self._describe(model)
        self._itself = ctypes.addressof(self._state)
        self._runs = _runs(model)
        self._token = torch.zeros(1, 1, dtype=torch.long)
        self._embedding = model.embed.weight.data_ptr()
        self._first, self._ahead = 0, 0  # the first of the positions whose rotations are known, and their number
        self._angles: Rotation = None

    def is_current(self) -> bool:
        """Whether the weights still lie where they lay."""
        return self._model.embed.weight.data_ptr() == self._embedding

    def __call__(self, token: int) -> Tensor:
        """Append one token to the cache -> logits [V] of the one after it, in memory that is the caller's."""
        position = self._cache.begin(1)
        self._turn(position)
        tokens, x = self._embed(token, position)
        at = x.data_ptr()
        for begin, end, experts in self._runs:
            self._code.run_blocks(self._itself, begin, end, position, at)
            if experts is not None:
                norm, moe = experts
                x += moe(norm(x))[0]
        self._cache.advance(tokens)
        return self._judge(x)

    def _embed(self, token: int, position: int) -> tuple[Tensor, Tensor]:
        """The token [1, 1], and what enters the first block [1, 1, C], which the blocks may write to."""
        model, tokens = self._model, self._token.fill_(token)
        for hook in model._forward_pre_hooks.values():
            hook(model, (tokens,))
        x = model.ngram(F.embedding(tokens, model.embed.weight), tokens, None, self._cache.recent)
        return tokens, model.positions.embed(x, position)

    def _turn(self, position: int) -> None:
        """Point to the angles of a position; those of the next ones are computed ahead."""
        if not self._first <= position < self._first + self._ahead:
            self._first, self._ahead = position, _AHEAD
            self._angles = self._model.positions.rotation(self._read[0].new_empty(1, _AHEAD, 1), position)
        if self._angles is not None:
            cos, sin = self._angles
            offset = (position - self._first) * cos.stride(0) * cos.element_size()
            self._state.cos, self._state.sin = cos.data_ptr() + offset, sin.data_ptr() + offset

    def _judge(self, x: Tensor) -> Tensor:
        head, embedding = self._model.head, self._model.embed.weight
        if not self._state.head.weight:
            return head.logits(self._model.norm(x), head.matrix(embedding))[0, 0]
        logits = x.new_empty(self._state.vocab)
        self._code.judge(self._itself, x.data_ptr(), logits.data_ptr())
        return softcap(logits, head.cap)

    def _address(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        self._read.append(x.detach())  # which outlives weights that are put elsewhere
        return x.data_ptr()

    def _affine(self, layer: Any) -> _Affine:
        return _Affine(self._address(layer.weight), self._address(getattr(layer, "bias", None)))

    def _block(self, block: Any, buffers: list[FullBuffer]) -> _Block:
        described = _Block(**{name: self._affine(layer) for name, layer in _layers(block).items()})
        for name, layer in (("stream_mix", block.stream_mix), ("value_mix", block.attn.value_mix)):
            if isinstance(layer, Mix):
                setattr(described, name, self._address(layer.weight))
        for i, buffer in enumerate(buffers):
            described.keys[i], described.values[i] = self._address(buffer.k), self._address(buffer.v)
            described.room[i] = buffer.k.size(2)
        described.windows = len(buffers)
        return described

    def _describe(self, model: GPT) -> _Model:
        config, matrix = model.config, model.head.matrix(model.embed.weight)
        described = _Model(
            blocks=self._blocks, norm=self._affine(model.norm), eps=config.norm_eps,
            width=config.n_embd, heads=config.n_head, kv_heads=config.n_kv_head, head_dim=config.head_dim,
            hidden=config.hidden, vocab=len(matrix), layernorm=config.norm == "layernorm",
            activation=_ACTIVATIONS[config.mlp],
        )  # fmt: skip
        if matrix.numel() <= _MOST_NUMBERS and _is_readable(matrix):
            described.head = _Affine(self._address(matrix), self._address(model.head.bias))
        wide, narrow = config.attention_width, config.n_kv_head * config.head_dim
        most = max(buffer.k.size(2) for buffer in self._cache.buffers())
        sizes = (*[config.n_embd] * 2, narrow, *[wide] * 2, *[narrow] * 2, *[config.hidden] * 2, most)
        for name, size in zip(_ROOMS, sizes, strict=True):
            setattr(described, name, self._address(torch.empty(size)))
        return described


def _runs(model: GPT) -> list[tuple[int, int, tuple[nn.Module, nn.Module] | None]]:
    """Blocks that follow each other without torch: the first, the one behind the last, and then a norm and experts."""
    runs: list[tuple[int, int, tuple[nn.Module, nn.Module] | None]] = []
    begin = 0
    for end, block in enumerate(model.blocks, start=1):
        experts = None
        if isinstance(block, ThreePartBlock):
            experts = (block.norm3, block.moe)
        elif isinstance(block, Block) and not isinstance(block.mlp, MLP | GatedMLP):
            experts = (block.norm2, block.mlp)
        if experts is not None or end == len(model.blocks):
            runs.append((begin, end, experts))
            begin = end
    return runs


__all__ = ["NativeStep", "describe", "load", "native_step"]
