"""Benchmarks behind `dgsgpt bench NAME`. Every figure is a ratio of sides that were measured in turn in one run.

Shapes: B batch, T tokens, C n_embd, H heads, D head dim, E experts, K experts per token, V vocab.
"""
