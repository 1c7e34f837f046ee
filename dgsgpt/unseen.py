"""Which part of a text models have not learned from, and what a comparison must say of who has read it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from dgsgpt.config import DataConfig, RunConfig


def unseen_fraction(corpus: str, given: Sequence[DataConfig]) -> float:
    """The share at the end of `corpus` that none of those who learned from it was trained on."""
    return min((data.val_fraction for data in given if data.corpus == corpus), default=given[0].val_fraction)


def training_notes(corpus: str, configs: Sequence[RunConfig]) -> list[str]:
    """Sentences on who learned from another text than the one compared on, which the figures cannot tell."""
    letters = [letter for letter, config in zip("ABCD", configs, strict=False) if config.data.corpus == corpus]
    others = [letter for letter in "ABCD"[: len(configs)] if letter not in letters]
    if not letters or not others:
        return []
    return [
        f"{', '.join(letters)} learned from the training part of {corpus}, {', '.join(others)} from another text: "
        "the difference is also one of what they have read, and whether the others have seen this text is not known"
    ]
