"""Names and layouts of weights, ours and theirs, in one table that is read in both directions.

A `Link` joins tensors of ours with tensors of theirs and holds both ways between them. GPT-2 keeps its matrices turned
round (`Conv1D`, [in, out]) and queries, keys and values fused; experts are one tensor each on disk, where ours are
stacked; newer files may have them stacked too, gate and up in one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dgsgpt.config import ModelConfig
from dgsgpt.interop.hf_families import Family
from dgsgpt.model import GPT

Way = Callable[[Sequence[Tensor]], Sequence[Tensor]]

# What older files keep beside the weights: causal masks and rotary frequencies.
BUFFERS = re.compile(r"(?:.*\.)?(?:attn\.(?:masked_)?bias|rotary_emb\.inv_freq)")

# Ours -> theirs, within one block.
LLAMA_BLOCK = {
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm",
    "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
    "attn.out": "self_attn.o_proj", "attn.q_norm": "self_attn.q_norm", "attn.k_norm": "self_attn.k_norm",
    "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj", "mlp.down": "mlp.down_proj",
}  # fmt: skip
STARCODER_BLOCK = {**LLAMA_BLOCK, "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
GPT2_BLOCK = {"norm1": "ln_1", "norm2": "ln_2", "attn.out": "attn.c_proj", "mlp.up": "mlp.c_fc",
              "mlp.down": "mlp.c_proj"}  # fmt: skip
LLAMA_REST = {"embed": "embed_tokens", "norm": "norm"}
GPT2_REST = {"embed": "wte", "norm": "ln_f"}
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Link:
    """Tensors of ours, those of theirs that say the same, and both ways between them."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    outward: Way = tuple
    inward: Way = tuple


@dataclass(frozen=True)
class Layout:
    """How one set of files writes its names."""

    prefix: str
    experts: str = "mlp"  # what holds router and experts: Mixtral has its own word
    stacked: bool = False  # all experts in one tensor

    @classmethod
    def of_export(cls, family: Family) -> Layout:
        """What is written: one tensor for each expert, as all programs read them."""
        return cls(family.prefix, "block_sparse_moe" if family.model_type == "mixtral" else "mlp")

    @classmethod
    def found(cls, family: Family, names: Collection[str]) -> Layout:
        """What the names in a file show."""
        prefix = family.prefix if any(name.startswith(family.prefix) for name in names) else ""
        experts = "block_sparse_moe" if any(".block_sparse_moe." in name for name in names) else "mlp"
        return cls(prefix, experts, any(name.endswith(".experts.gate_up_proj") for name in names))


def shapes(model: ModelConfig) -> dict[str, Tensor]:
    """Names and shapes of the weights of a network of ours, without memory for them."""
    with torch.device("meta"):
        weights: dict[str, Tensor] = GPT(model).state_dict()
    return weights


def links(family: Family, names: Collection[str], layout: Layout, n_expert: int = 0) -> Iterator[Link]:
    """The links of all of our `names`."""
    for name in names:
        if name.startswith("blocks."):
            _, i, inner = name.split(".", 2)
            if family.model_type == "gpt2":
                yield from _gpt2_block(f"blocks.{i}.", f"{layout.prefix}h.{i}.", inner)
            else:
                table = STARCODER_BLOCK if family.model_type == "starcoder2" else LLAMA_BLOCK
                yield from _llama_block(table, f"blocks.{i}.", f"{layout.prefix}layers.{i}.", inner, layout, n_expert)
        elif name == "head.weight":
            yield Link((name,), (LM_HEAD,))
        elif name == "positions.weight":
            yield Link((name,), (f"{layout.prefix}wpe.weight",))
        else:
            module, _, kind = name.rpartition(".")
            rest = GPT2_REST if family.model_type == "gpt2" else LLAMA_REST
            yield Link((name,), (f"{layout.prefix}{rest[module]}.{kind}",))


def _gpt2_block(ours: str, theirs: str, inner: str) -> Iterator[Link]:
    module, _, kind = inner.rpartition(".")
    if module in ("attn.k", "attn.v"):
        return  # with attn.q
    if module == "attn.q":
        three = (f"{ours}attn.q.{kind}", f"{ours}attn.k.{kind}", f"{ours}attn.v.{kind}")
        ways = (_fuse_turned, _split_turned) if kind == "weight" else (_fuse, _split)
        yield Link(three, (f"{theirs}attn.c_attn.{kind}",), *ways)
        return
    turned = kind == "weight" and not module.startswith("norm")
    yield Link((ours + inner,), (f"{theirs}{GPT2_BLOCK[module]}.{kind}",), *((_turn, _turn) if turned else ()))


def _llama_block(
    table: dict[str, str], ours: str, theirs: str, inner: str, layout: Layout, n_expert: int
) -> Iterator[Link]:
    place = f"{theirs}{layout.experts}."
    module, _, kind = inner.rpartition(".")
    if inner == "mlp.router.weight":
        yield Link((ours + inner,), (place + "gate.weight",))
    elif module != "mlp.experts":
        yield Link((ours + inner,), (f"{theirs}{table[module]}.{kind}",))
    elif not layout.stacked:
        word = {"gate": "w1", "up": "w3", "down": "w2"}[kind] if layout.experts != "mlp" else f"{kind}_proj"
        each = tuple(f"{place}experts.{e}.{word}.weight" for e in range(n_expert))
        yield Link((ours + inner,), each, _unstack, _stack)
    elif kind == "down":
        yield Link((ours + inner,), (place + "experts.down_proj",))
    elif kind == "gate":
        both = (f"{ours}mlp.experts.gate", f"{ours}mlp.experts.up")
        yield Link(both, (place + "experts.gate_up_proj",), _join_gate, _part_gate)


# ---------------------------------------------------------------- layouts
def _turn(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return (x[0].T,)


def _fuse(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return (torch.cat(list(x)),)


def _split(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return x[0].chunk(3)


def _fuse_turned(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return (torch.cat(list(x)).T,)


def _split_turned(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return x[0].T.chunk(3)


def _unstack(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return x[0].unbind(0)


def _stack(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return (torch.stack(list(x)),)


def _join_gate(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return (torch.cat(list(x), dim=1),)


def _part_gate(x: Sequence[Tensor]) -> Sequence[Tensor]:
    return x[0].chunk(2, dim=1)
