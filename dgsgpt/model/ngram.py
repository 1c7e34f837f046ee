"""Embeddings of the last few tokens together, beside that of the token alone.

A table for each order n has a row for each n-gram, or for many that share it by a hash where there are more n-grams
than rows. Looking up costs no matrix product, and what usually follows two or three tokens need not be computed by
attention. Unlike in the paper, which hashes bytes, an order whose n-grams all fit is indexed exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgsgpt.config import ModelConfig
from dgsgpt.costs import ngram_rows, vocab_size

# Odd numbers without pattern: the first 64 bits of the fractional parts of the square roots of 3, 5, 7, 11, 13, 17, 19
# and 23 (as in SHA-2), made odd, as signed integers. One for each token of an n-gram, the last seen first.
MULTIPLIERS = tuple(
    (word | 1) - (word >> 63 << 64)
    for word in (
        0xBB67AE8584CAA73B,
        0x3C6EF372FE94F82B,
        0xA54FF53A5F1D36F1,
        0x510E527FADE682D1,
        0x9B05688C2B3E6C1F,
        0x1F83D9ABFB41BD6B,
        0x5BE0CD19137E2179,
        0xCBBB9D5DC1059ED8,
    )
)
STIR = -0x61C8864680B583EB  # 2^64 / golden ratio, odd
HASH_BITS = 40  # of 64: the uppermost, on which every bit below acts


class NgramEmbedding(nn.Module):
    """One table for each order 2 to `max_order`, added to the token embedding (Pagnoni et al. 2024, section 3.2.1).

    Tables start at zero: n-grams that were never seen, of which a hashed table has many, then add nothing but what
    others sharing their row have learned.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rows = ngram_rows(config)
        # An n-gram read as a number of n digits to the base V is its own row, as far as there are rows for all.
        base = vocab_size(config)
        self.powers = [1, *(base ** (order - 1) for order, rows in self.rows.items() if rows == base**order)]
        self.tables = nn.ModuleDict(
            {
                # Given a matrix, torch spares drawing one, which for millions of rows takes seconds.
                str(order): nn.Embedding.from_pretrained(torch.empty(rows, config.n_embd), freeze=False)
                for order, rows in self.rows.items()
            }
        )

    def forward(self, x: Tensor, tokens: Tensor, places: Tensor | None, recent: Tensor | None) -> Tensor:
        """`x` [B, T, C], embedded `tokens` [B, T], plus the rows of all n-grams that end at each token.

        `places` [B, T] are places in packed texts, `recent` [B, S] the tokens of a cache that came before, at least
        `max_order - 1` of them or all there were. An n-gram that would begin before its text adds nothing.
        """
        seen = tokens if recent is None else torch.cat((recent, tokens), dim=1)
        earlier = seen.size(1) - tokens.size(1)
        if places is None:
            places = torch.arange(earlier, seen.size(1), device=tokens.device)
        for order, index in zip(self.rows, self.indices(seen), strict=True):
            found: Tensor = self.tables[str(order)](index[:, earlier:])
            x = x + found * (places >= order - 1)[..., None]
        return x

    def indices(self, tokens: Tensor) -> Iterator[Tensor]:
        """For each order the row [B, T] of the n-gram that ends at each of `tokens` [B, T].

        Tokens before the first count as 0; what comes of it is for the caller to leave out.
        """
        yield from rolling_sums(tokens, self.powers)
        keys = rolling_sums(tokens, MULTIPLIERS[: len(self.rows) + 1])
        for key, rows in islice(zip(keys, self.rows.values(), strict=True), len(self.powers) - 1, None):
            yield stir(key) % rows


class NoNgrams(nn.Module):
    """What takes the place of `NgramEmbedding` where tokens are embedded alone."""

    def forward(self, x: Tensor, tokens: Tensor, places: Tensor | None, recent: Tensor | None) -> Tensor:
        """`x`, unchanged."""
        return x


def rolling_sums(tokens: Tensor, factors: Sequence[int]) -> Iterator[Tensor]:
    """For n = 2, 3, ...: of each of `tokens` [B, T] and the n - 1 before it, the sum of each times its factor.

    The last token has the first factor. Sums [B, T] are of 64 bits and wrap around.
    """
    total = tokens.long() * factors[0]
    for back, factor in enumerate(factors[1:], start=1):
        total = total + F.pad(tokens, (back, 0))[:, : tokens.size(1)].long() * factor
        yield total


def stir(x: Tensor) -> Tensor:
    """Integers of 40 bits, each of which depends on all bits of the int64 `x`, whose arithmetic wraps around."""
    x = (x ^ (x >> 32)) * STIR
    return (x >> (64 - HASH_BITS)) & (2**HASH_BITS - 1)


def build_ngrams(config: ModelConfig) -> NgramEmbedding | NoNgrams:
    """Embeddings of the n-grams that `model.ngram` names, or none."""
    return NoNgrams() if config.ngram is None else NgramEmbedding(config)
