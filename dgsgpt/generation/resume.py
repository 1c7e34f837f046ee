"""Where a generation stands when some of its tokens are there already."""

from __future__ import annotations

from collections.abc import Sequence

from dgsgpt.generation.context import anchored


def context_after(prompt: list[int], written: Sequence[int], limit: int | None, lead: list[int]) -> list[int]:
    """The tokens that a generation has in its context once it has read `written` after the ids of `prompt`.

    The context begins anew after `limit` tokens, as `context_limit` tells it.
    """
    context = list(prompt)
    for token in written:
        new, anew = anchored(context, [token], limit, lead)
        if anew:
            context = list(new)
        else:
            context += new
    return context


__all__ = ["context_after"]
