"""The network: a GPT whose parts (positions, window, grouped-query attention, experts) are chosen by its config.

One legend of shapes serves the whole package: B batch, T tokens, S keys, C n_embd, H heads, G key/value heads,
D head width, E experts, K experts per token, F hidden width, N = B T rows, V vocabulary.
"""

from dgsgpt.model.cache import KVCache
from dgsgpt.model.gpt import GPT, Block, Output
from dgsgpt.model.moe import RouterStats

__all__ = ["GPT", "Block", "KVCache", "Output", "RouterStats"]
