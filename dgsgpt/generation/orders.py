"""One prompt written once, several times or by beams, told as plain values that JSON can hold."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dgsgpt.generation.batch import Result, generate_batch
from dgsgpt.generation.beam import BeamSettings, grow_beams
from dgsgpt.generation.engine import TextStream

if TYPE_CHECKING:
    from dgsgpt.checkpoint import Checkpoint

Report = Callable[[str, float], None]  # what is done, and which share of it


def tell_text(pieces: TextStream) -> dict[str, Any]:
    """The whole text of a stream, with its figures."""
    text = "".join(pieces)
    stats = pieces.stats
    figures = {"tokens": stats.tokens, "tokens_per_s": stats.tokens_per_s, "first_token_s": stats.first_token_s}
    return {"text": text, **figures}


def tell_samples(
    opened: Checkpoint, prompt: str, samples: int, batch_size: int, rules: dict[str, Any], report: Report
) -> tuple[dict[str, Any], int]:
    """`samples` texts, the first one's also as "text", and the cropped tokens; tokens and speed are those of all.

    Raises:
        DgsgptError: as `generate_batch`.
    """
    started = time.perf_counter()
    found = generate_batch(
        opened.model, opened.tokenizer, [prompt], samples=samples, batch_size=batch_size,
        on_progress=lambda share, tokens: report(f"{tokens:,} tokens", share), **rules,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    tokens, first = sum(one.stats.tokens for one in found), found[0]
    figures = {"tokens": tokens, "tokens_per_s": tokens / seconds, "first_token_s": first.stats.first_token_s}
    return {"text": first.text, **figures, "samples": [_of_sample(one) for one in found]}, first.stats.cropped


def _of_sample(one: Result) -> dict[str, Any]:
    stats = one.stats
    return {"text": one.text, "tokens": stats.tokens, "seed": stats.seed, "finish_reason": stats.finish_reason}


def tell_beams(opened: Checkpoint, prompt: str, settings: BeamSettings, report: Report) -> tuple[dict[str, Any], int]:
    """The best texts of a beam search, the first one's also as "text", and the cropped tokens.

    "tokens" are steps, each of which continues all beams.

    Raises:
        DgsgptError: as `grow_beams`.
    """
    found = grow_beams(
        opened.model, opened.tokenizer, prompt, settings,
        lambda step, most: report(f"{step:,} tokens", step / most),
    )  # fmt: skip
    beams = [
        {
            "text": beam.text,
            "tokens": len(beam.ids),
            "score": beam.score,
            "logprob": beam.logprob,
            "finished": beam.finished,
        }
        for beam in found.beams
    ]
    figures = {"tokens": found.tokens, "tokens_per_s": found.tokens / found.seconds}
    told = {"text": beams[0]["text"], **figures, "first_token_s": found.first_token_s, "beams": beams}
    return told, found.cropped


__all__ = ["Report", "tell_beams", "tell_samples", "tell_text"]
