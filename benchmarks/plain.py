"""GPT-2 trained as nanoGPT does it on one GPU: the other side of P12, independent of this project's model and trainer.

Linear layers without biases, one matrix for queries, keys and values, LayerNorm, GELU, learned positions, tied output
layer; all logits at once; the whole model compiled; bfloat16 autocast; fused AdamW; the gradient's norm clipped to 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.training import RandomBatches
from dgsgpt.config import ModelConfig, RunConfig


class PlainBlock(nn.Module):
    """Attention and a network, each behind its norm (Radford et al. 2019, section 2.3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.norm_1, self.norm_2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, T, C] -> [B, T, C]."""
        B, T, C = x.shape
        parts = self.qkv(self.norm_1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


class PlainGPT(nn.Module):
    """GPT-2 of the shape that `config` describes; of its options it knows none."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.vocab_size is not None
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=False)
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """`tokens`, `targets` [B, T] -> mean cross-entropy [] in nats per token."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.size(1), device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class PlainStep:
    """Called, makes one optimizer step with the batches, the rate and the accumulation of `config`."""

    def __init__(self, config: RunConfig, device: torch.device, *, compiled: bool) -> None:
        train = config.train
        torch.manual_seed(train.seed)
        self.model = PlainGPT(config.model).to(device)
        self._forward = torch.compile(self.model) if compiled else self.model
        groups = [
            {"params": [p for p in self.model.parameters() if p.ndim >= 2], "weight_decay": train.weight_decay},
            {"params": [p for p in self.model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), fused=True)
        self._batches, self._device, self._train = RandomBatches(config), device, train
        self._index = 0
        self.loss = torch.zeros((), device=device)  # of the last step

    def __call__(self) -> None:
        """Batches, forward, loss, backward, clip, step."""
        n = self._train.grad_accum_steps
        total = torch.zeros((), device=self._device)
        for _ in range(n):
            inputs, targets, _documents = self._batches.get(self._index)
            self._index += 1
            with torch.autocast(self._device.type, dtype=torch.bfloat16):
                loss = self._forward(self._moved(inputs), self._moved(targets)) / n
            loss.backward()
            total += loss.detach()
        if self._train.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self._train.grad_clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.loss = total

    def _moved(self, tokens: Tensor | None) -> Tensor:
        assert tokens is not None
        return tokens if self._device.type == "cpu" else tokens.pin_memory().to(self._device, non_blocking=True)
