"""The sizes of a micro-batch's tensors, by which the memory of a step is counted. Pure arithmetic, no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dgsgpt.architecture import SHORT_ATTENTION, ModelConfig


@dataclass(frozen=True)
class MicroBatch:
    """B sequences of T tokens on their way through the network, and the sizes of their tensors in bytes."""

    model: ModelConfig
    sequences: int
    e: int  # bytes of a number in matrix products
    cpu: bool = True  # its kernels, or those of a GPU
    stream_e: int = 4  # bytes of a number of the residual stream: that of the stored weights

    def attention_bytes(self, queries: int) -> int:
        """Bytes of a number while so many queries are attended at once: CPUs turn few of them into float32."""
        return 4 if self.cpu and queries < SHORT_ATTENTION else self.e

    @property
    def tokens(self) -> int:
        """N = B T."""
        return self.sequences * self.model.block_size

    @property
    def stream(self) -> int:
        """The residual stream, or a gradient of it."""
        return self.stream_e * self.tokens * self.model.n_embd

    @property
    def exact(self) -> int:
        """A tensor of the stream's shape in float32, in which norms, routers and rotary positions compute."""
        return 4 * self.tokens * self.model.n_embd

    @property
    def wide(self) -> int:
        """What a matrix product reads or gives in width C."""
        return self.e * self.tokens * self.model.n_embd

    @property
    def queries(self) -> int:
        """Queries, or what attention gives: H D wide, which need not be C."""
        return self.e * self.tokens * self.model.attention_width

    @property
    def narrow(self) -> int:
        """Keys, or values."""
        return self.e * self.tokens * self.model.n_kv_head * self.model.head_dim

    @property
    def cast(self) -> int:
        """What a product reads beside the router, which reads float32; nothing where both are one."""
        return self.wide if self.e < 4 else 0

    @property
    def branch(self) -> int:
        """The gradient of what a branch adds to the stream, where cast or dropout make it another than the stream's."""
        return self.wide if self.e != self.stream_e or self.model.dropout else 0
