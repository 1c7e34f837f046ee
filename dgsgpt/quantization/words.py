"""A judgement in rows and sentences, the same on the command line and on the page. No torch."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

from dgsgpt import format as fmt

if TYPE_CHECKING:
    from dgsgpt.quantization.judging import Judgement


class Row(NamedTuple):
    """One figure before and after; `better` is None where neither is shown to be."""

    name: str
    before: str
    after: str
    difference: str
    range: str
    better: bool | None


def rows(judged: Judgement) -> list[Row]:
    """Bits per byte, bytes and speed, before and after."""
    made, full = judged.comparison.models
    gap, speed = judged.loss_of_bits, judged.speed
    digits = 4 if max(abs(gap.low), abs(gap.high)) >= 0.001 else 6
    interval = f"{fmt.signed(gap.low, digits)} to {fmt.signed(gap.high, digits)}"
    before, after = statistics.median(speed.full), statistics.median(speed.quantized)
    low, high = min(speed.ratios), max(speed.ratios)
    faster = {"faster": True, "slower": False}.get(speed.verdict)
    weights = _bytes("weights on disk", judged.quantized.before_bytes, judged.quantized.after_bytes)
    return [
        Row(
            "bits per byte", fmt.number(full.bpb, digits), fmt.number(made.bpb, digits), fmt.signed(gap.value, digits),
            interval, gap.value < 0 if gap.shown else None,
        ),
        weights,
        _bytes("weights in memory", judged.memory_before, judged.memory_after),
        Row(
            "tokens a second", fmt.number(before, _digits(before)), fmt.number(after, _digits(after)),
            f"× {fmt.number(statistics.median(speed.ratios), 2)}",
            f"{fmt.number(low, 2)} to {fmt.number(high, 2)}", faster,
        ),
    ]  # fmt: skip


def _bytes(name: str, before: int, after: int) -> Row:
    change = ("+" if after > before else fmt.MINUS) + fmt.percent(abs(after / before - 1))
    return Row(name, fmt.size(before), fmt.size(after), change, "", None if after == before else after < before)


def _digits(value: float) -> int:
    return 1 if value < 100 else 0


def sentences(judged: Judgement) -> list[str]:
    """What was found, and how."""
    return [*findings(judged), *method(judged)]


def findings(judged: Judgement) -> list[str]:
    """The loss, the bytes that stay as they were, the speed."""
    return [_loss(judged), _rest(judged), _speed(judged)]


def method(judged: Judgement) -> list[str]:
    """On what and how it was measured, and what must be said with it."""
    comparison, speed = judged.comparison, judged.speed
    text = (
        f"Judged on {judged.text}: {comparison.text_rule}, {fmt.number(comparison.tokens)} tokens, "
        f"{fmt.plural(comparison.blocks, 'block')}."
    )
    turns = (
        f"Speed: {fmt.plural(len(speed.full), 'turn')} of {speed.written_tokens} tokens each, on {speed.device}"
        + (f" with {fmt.plural(speed.threads, 'thread')}" if speed.device == "cpu" else "")
        + ", one token at a time."
    )
    warnings = [f"{warning[:1].upper()}{warning[1:]}." for warning in comparison.warnings]
    return [text, turns, *warnings]


def _loss(judged: Judgement) -> str:
    gap = judged.loss_of_bits
    row = rows(judged)[0]
    if not gap.shown:
        return f"No loss in bits per byte is shown: {row.difference}, and the 95 % interval, {row.range}, holds zero."
    word = "worse" if gap.value > 0 else "better"
    return f"It predicts {word}: {row.difference} bits per byte (95 % interval {row.range})."


def _rest(judged: Judgement) -> str:
    kept = [part for part in judged.quantized.parts if not part.quantized and part.after_bytes]
    total = sum(part.after_bytes for part in kept)
    share = total / max(1, judged.quantized.after_bytes)
    names = ", ".join(part.name for part in sorted(kept, key=lambda part: -part.after_bytes))
    return f"{fmt.size(total)} ({fmt.percent(share, 0)} of what is left) stay as they were: {names}."


def _speed(judged: Judgement) -> str:
    row = rows(judged)[3]
    if row.better is None:
        between = row.range.replace(" to ", " and ")
        return f"No difference in speed is shown here: between {between} times as fast, turn by turn."
    return f"It writes {'faster' if row.better else 'slower'} here: {row.difference} ({row.range}, turn by turn)."


__all__ = ["Row", "findings", "method", "rows", "sentences"]
