"""The GPT: embedding, blocks, output layer, loss.

Every choice of the config is made in a constructor; a forward pass asks nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgsgpt.architecture import Windows
from dgsgpt.config import ModelConfig, MoEConfig, layer_is_moe, layer_windows
from dgsgpt.errors import ConfigError
from dgsgpt.model.attention import Attention, Surroundings
from dgsgpt.model.cache import KVCache, Past
from dgsgpt.model.loss import Head, TiedHead
from dgsgpt.model.mlp import build_mlp
from dgsgpt.model.moe import MoE, RouterStats, build_moe
from dgsgpt.model.ngram import build_ngrams
from dgsgpt.model.norm import build_norm
from dgsgpt.model.rope import build_positions
from dgsgpt.model.shortcuts import Mix, build_mix


@dataclass(frozen=True)
class Output:
    """What a forward pass gives."""

    logits: Tensor | None  # [B, T, V]; None where a loss in chunks made them unnecessary
    loss: Tensor | None  # [] mean cross-entropy in nats per token, without the auxiliary loss
    aux_loss: Tensor  # [] weighted router losses, averaged over MoE layers; 0 without experts
    router: list[RouterStats] | None  # one for each MoE layer


class BlockOutput(NamedTuple):
    """What one block gives."""

    x: Tensor  # [B, T, C]
    values: Tensor | None  # [B, T, G, D] of its attention, where later layers mix them in
    aux_loss: Tensor | None  # [] of an MoE layer
    router: RouterStats | None


class Block(nn.Module):
    """A pre-norm Transformer block (Xiong et al. 2020): attention, then a dense network or, with `moe`, experts."""

    def __init__(self, config: ModelConfig, index: int, windows: Windows, moe: MoEConfig | None) -> None:
        super().__init__()
        later = index > 0  # the first block has nothing earlier to mix in
        self.stream_mix = build_mix(config.x0_shortcut and later, 1.0, 0.0)
        self.norm1 = build_norm(config)
        self.attn = Attention(config, windows, mixes_values=config.value_residual and later)
        self.norm2 = build_norm(config)
        self.mlp = build_moe(config, moe) if moe else build_mlp(config, config.hidden)
        self.drop = nn.Dropout(config.dropout) if config.dropout else _drop_nothing
        self.share = _keep if config.value_residual and not later else _let_go

    def forward(self, x: Tensor, around: Surroundings, past: list[Past] | None = None) -> BlockOutput:
        """`x` [B, T, C] -> [B, T, C] and what else a block gives."""
        x = self.stream_mix(x, around.first)
        y, values = self.attn(self.norm1(x), around, past)
        x = x + self.drop(y)
        y, aux_loss, router = self.mlp(self.norm2(x))
        return BlockOutput(x + self.drop(y), self.share(values), aux_loss, router)


class ThreePartBlock(Block):
    """A block whose experts follow its dense network, as a third sub-layer with a norm of its own.

    The arrangement of the original DGS-GPT; others put experts in the dense network's place.
    """

    def __init__(self, config: ModelConfig, index: int, windows: Windows, moe: MoEConfig) -> None:
        super().__init__(config, index, windows, None)
        self.norm3 = build_norm(config)
        self.moe = build_moe(config, moe)

    def forward(self, x: Tensor, around: Surroundings, past: list[Past] | None = None) -> BlockOutput:
        """`x` [B, T, C] -> [B, T, C] and what else a block gives."""
        x, values, _, _ = super().forward(x, around, past)
        y, aux_loss, router = self.moe(self.norm3(x))
        return BlockOutput(x + self.drop(y), values, aux_loss, router)


def build_block(config: ModelConfig, index: int, windows: Windows, sparse: bool) -> Block:
    """The block that the config puts at `index`; `sparse` ones have experts."""
    moe = config.moe if sparse else None
    if moe is not None and moe.after_dense:
        return ThreePartBlock(config, index, windows, moe)
    return Block(config, index, windows, moe)


def _drop_nothing(x: Tensor) -> Tensor:
    return x


def _keep(values: Tensor) -> Tensor | None:
    return values


def _let_go(values: Tensor) -> Tensor | None:
    return None


class GPT(nn.Module):
    """A decoder-only Transformer (Radford et al. 2019).

    Raises:
        ConfigError: `config.vocab_size` is not known yet.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ConfigError(
                "model.vocab_size=null: the model needs the tokenizer's size; prepare the data first, or set it",
                {"model.vocab_size": "not known yet"},
            )
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.ngram = build_ngrams(config)
        self.positions = build_positions(config)
        self.drop = nn.Dropout(config.dropout) if config.dropout else _drop_nothing
        kinds = zip(layer_windows(config), layer_is_moe(config), strict=True)
        self.blocks = nn.ModuleList(
            build_block(config, i, windows, sparse) for i, (windows, sparse) in enumerate(kinds)
        )
        self.norm = build_norm(config)
        self.head = (TiedHead if config.tie_embeddings else Head)(config)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights: normal(0, 0.02), narrower where a sub-layer adds to the residual stream.

        That is by the root of their number, 2 n_layer unless experts are a third of a block. As in GPT-2 (Radford et
        al. 2019, section 2.3): the stream's variance then does not grow with depth. With
        `zero_init` these start at zero instead, so that every block begins as the identity (Zhang et al. 2019,
        Fixup); learning by the demo's recipe was no faster so, and the router's first gradient is then zero.
        Biases start at 0, gains of norms at 1, shortcuts at the shares they were built with, tables of n-grams at 0.
        """
        sub_layers = sum(3 if isinstance(block, ThreePartBlock) else 2 for block in self.blocks)
        residual = 0.0 if self.config.zero_init else 0.02 / math.sqrt(sub_layers)
        for name, p in self.named_parameters():
            if name.startswith("ngram.") or name.endswith("bias"):
                p.zero_()
            elif name.endswith(("out.weight", "down.weight", "experts.down")):
                p.normal_(0.0, residual)
            elif p.ndim > 1:
                p.normal_(0.0, 0.02)
            else:
                p.fill_(1.0)
        for module in self.modules():
            if isinstance(module, Mix):
                module.init_weights()

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        documents: Tensor | None = None,
    ) -> Output:
        """`tokens` [B, T] int64; `targets` [B, T], where -100 is ignored; a `cache` is read and extended by T tokens.

        `documents` [B, T] numbers the texts packed into each row: a run of one number is one text, and no token sees
        another text than its own. The result is then that of each text alone.

        Raises:
            ValueError: more tokens than `cache`, or than learned positions, have room for; documents with a cache.
        """
        if cache is not None and documents is not None:
            raise ValueError("documents= packs whole texts and does not go with cache=; give each text its own row")
        start = cache.begin(tokens.size(1)) if cache is not None else 0
        starts, places = (None, None) if documents is None else locate(documents)
        x = self.ngram(self.embed(tokens), tokens, places, cache.recent if cache is not None else None)
        rotation = cache.rotation(self.positions, x) if cache is not None else self.positions.rotation(x, 0)
        x = self.drop(self.positions.embed(x, start, places))
        around = Surroundings(rotation, starts, x)
        aux_losses: list[Tensor] = []
        router: list[RouterStats] = []
        for i, block in enumerate(self.blocks):
            out: BlockOutput = block(x, around, cache.past(i) if cache is not None else None)
            x = out.x
            if out.values is not None:
                around = around._replace(values=out.values)
            if out.aux_loss is not None and out.router is not None:
                aux_losses.append(out.aux_loss)
                router.append(out.router)
        if cache is not None:
            cache.advance(tokens)
        logits, loss = self._judge(self.norm(x), targets)
        aux_loss = torch.stack(aux_losses).mean() if aux_losses else torch.zeros((), device=x.device)
        return Output(logits, loss, aux_loss, router or None)

    def _judge(self, x: Tensor, targets: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Logits and, where there are targets, the loss of `x` [B, T, C]."""
        matrix = self.head.matrix(self.embed.weight)
        return self.head.loss(x, matrix, targets) if targets is not None else (self.head.logits(x, matrix), None)

    def balance_experts(self, router: list[RouterStats]) -> None:
        """After an optimizer step: move the bias of every expert that had more or less than its share.

        `router` has one entry for each MoE layer, of all that the step has read; without `moe.balance: bias` nothing
        happens.
        """
        layers = [module for module in self.modules() if isinstance(module, MoE)]
        for layer, stats in zip(layers, router, strict=True):
            layer.balance(stats.load)

    def make_cache(self, batch_size: int, max_tokens: int | None, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch_size` rows of up to `max_tokens` tokens; `dtype` null is that of the weights.

        `max_tokens` null is no bound, for models with a window in every layer and no learned positions.
        """
        weight = self.embed.weight
        return KVCache(self.config, batch_size, max_tokens, dtype or weight.dtype, weight.device)


def locate(documents: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token of `documents` [B, T]: the index its text begins at, and its place in the text; both [B, T]."""
    index = torch.arange(documents.size(1), device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = torch.where(begins, index, 0).cummax(dim=1).values
    return starts, index - starts
