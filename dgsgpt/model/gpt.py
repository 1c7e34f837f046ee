"""The GPT: embedding, blocks, output layer, loss.

Every choice of the config is made in a constructor; a forward pass asks nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.config import ModelConfig, layer_is_moe, layer_windows
from dgsgpt.errors import ConfigError
from dgsgpt.model.attention import Attention
from dgsgpt.model.cache import KVCache, Past
from dgsgpt.model.mlp import build_mlp
from dgsgpt.model.moe import RouterStats, build_moe
from dgsgpt.model.norm import build_norm
from dgsgpt.model.rope import Rotation, build_positions

IGNORED = -100


@dataclass(frozen=True)
class Output:
    """What a forward pass gives."""

    logits: Tensor | None  # [B, T, V]
    loss: Tensor | None  # [] mean cross-entropy in nats per token, without the auxiliary loss
    aux_loss: Tensor  # [] weighted router losses, averaged over MoE layers; 0 without experts
    router: list[RouterStats] | None  # one for each MoE layer


class Block(nn.Module):
    """A pre-norm Transformer block (Xiong et al. 2020): attention, then a dense or sparse network."""

    def __init__(self, config: ModelConfig, window: int | None, moe: bool) -> None:
        super().__init__()
        self.norm1 = build_norm(config)
        self.attn = Attention(config, window)
        self.norm2 = build_norm(config)
        self.mlp = build_moe(config, config.moe) if moe and config.moe else build_mlp(config, config.hidden)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: Rotation = None, past: Past | None = None
    ) -> tuple[Tensor, Tensor | None, RouterStats | None]:
        """`x` [B, T, C] -> ([B, T, C], auxiliary loss and statistics of an MoE layer)."""
        x = x + self.drop(self.attn(self.norm1(x), rotation, past))
        y, aux, stats = self.mlp(self.norm2(x))
        return x + self.drop(y), aux, stats


class Head(nn.Module):
    """An output layer of its own."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x` [B, T, C] -> logits [B, T, V]."""
        return F.linear(x, self.weight)


class TiedHead(nn.Module):
    """An output layer that is the token embedding (Press & Wolf 2017); it holds no parameter of its own."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`x` [B, T, C], `embedding` [V, C] -> logits [B, T, V]."""
        return F.linear(x, embedding)


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
        self.positions = build_positions(config)
        self.drop = nn.Dropout(config.dropout)
        kinds = zip(layer_windows(config), layer_is_moe(config), strict=True)
        self.blocks = nn.ModuleList(Block(config, window, moe) for window, moe in kinds)
        self.norm = build_norm(config)
        self.head = TiedHead() if config.tie_embeddings else Head(config.n_embd, config.vocab_size)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw fresh weights: normal(0, 0.02), narrower by sqrt(2 n_layer) where a layer adds to the residual stream.

        As in GPT-2 (Radford et al. 2019, section 2.3): the stream's variance then does not grow with depth.
        Zeros instead, as some speed records have them, learned no faster here and hide the router's first gradient.
        Biases start at 0, gains of norms at 1.
        """
        for name, p in self.named_parameters():
            if name.endswith(("out.weight", "down.weight", "experts.down")):
                p.normal_(0.0, 0.02 / math.sqrt(2 * self.config.n_layer))
            elif p.ndim > 1:
                p.normal_(0.0, 0.02)
            elif name.endswith("bias"):
                p.zero_()
            else:
                p.fill_(1.0)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, *, cache: KVCache | None = None) -> Output:
        """`tokens` [B, T] int64; `targets` [B, T], where -100 is ignored; a `cache` is read and extended by T tokens.

        Raises:
            ValueError: more tokens than `cache`, or than learned positions, have room for.
        """
        start = cache.begin(tokens.size(1)) if cache is not None else 0
        x = self.embed(tokens)
        rotation = self.positions.rotation(x, start)
        x = self.drop(self.positions.embed(x, start))
        aux_losses: list[Tensor] = []
        router: list[RouterStats] = []
        for i, block in enumerate(self.blocks):
            x, aux, stats = block(x, rotation, cache.past(i) if cache is not None else None)
            if aux is not None:
                aux_losses.append(aux)
                router.append(stats)
        if cache is not None:
            cache.advance(tokens.size(1))
        logits = self.head(self.norm(x), self.embed.weight)
        loss = None if targets is None else cross_entropy(logits, targets)
        aux_loss = torch.stack(aux_losses).mean() if aux_losses else torch.zeros((), device=x.device)
        return Output(logits, loss, aux_loss, router or None)

    def make_cache(self, batch_size: int, max_tokens: int, dtype: torch.dtype | None = None) -> KVCache:
        """An empty cache for `batch_size` rows of up to `max_tokens` tokens; `dtype` null is that of the weights."""
        weight = self.embed.weight
        return KVCache(self.config, batch_size, max_tokens, dtype or weight.dtype, weight.device)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token, in float32, of `logits` [B, T, V] over `targets` [B, T] that are not -100.

    Where every target is ignored it is 0, with no gradient.
    """
    total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)
