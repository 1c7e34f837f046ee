"""Where a generation stands when some of its tokens are there already."""

from __future__ import annotations

from collections.abc import Sequence

from dgsgpt.generation.context import anchored


def context_after(prompt: list[int], written: Sequence[int], block_size: int, lead: list[int]) -> list[int]:
    """The tokens that a generation has in its context once it has read `written` after the ids of `prompt`."""
    context = list(prompt)
    for token in written:
        new, anew = anchored(context, [token], block_size, lead)
        if anew:
            context = list(new)
        else:
            context += new
    return context


__all__ = ["context_after"]
