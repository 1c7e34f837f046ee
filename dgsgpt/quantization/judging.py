"""What quantizing costs and gains, measured before anyone accepts it: bits per byte, bytes, tokens a second.

Both models predict the same text (`dgsgpt.evaluation.paired`), and write in turns on this machine, so that whatever
else it does hits both alike. A model counts as faster only where it was so in every turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dgsgpt import checkpoint as ck
from dgsgpt.config import ModelConfig
from dgsgpt.errors import CheckpointError
from dgsgpt.evaluation.paired import Comparison, Difference, Subject, compare
from dgsgpt.generation.context import Context, context_lead, prepare_prompt
from dgsgpt.model import GPT
from dgsgpt.model.quantized import install, resident_bytes
from dgsgpt.quantization.rounding import Quantized, quantize_tensors

if TYPE_CHECKING:
    from dgsgpt.data.tokenizer import Tokenizer

Progress = Callable[[str, float], None]

MAX_TOKENS = 20_000
ROUNDS, WRITTEN_TOKENS = 7, 32
_PROMPT_CHARACTERS = 64
_LOADED, _JUDGED = 0.1, 0.75  # of the whole work, by experience


@dataclass(frozen=True)
class Speed:
    """Tokens a second while writing one after the other, by turn, of the model as it was and of the quantized one."""

    full: tuple[float, ...]
    quantized: tuple[float, ...]
    written_tokens: int
    device: str
    threads: int

    @property
    def ratios(self) -> list[float]:
        """The quantized model's speed as a multiple of the other's, by turn."""
        return [q / f for q, f in zip(self.quantized, self.full, strict=True)]

    @property
    def verdict(self) -> str:
        """`faster` or `slower` where it was so in every turn, else `no difference shown`."""
        if min(self.ratios) > 1:
            return "faster"
        return "slower" if max(self.ratios) < 1 else "no difference shown"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "full": statistics.median(self.full),
            "quantized": statistics.median(self.quantized),
            "ratio": statistics.median(self.ratios),
            "ratio_low": min(self.ratios),
            "ratio_high": max(self.ratios),
            "verdict": self.verdict,
            "turns": len(self.full),
            "written_tokens": self.written_tokens,
            "device": self.device,
            "threads": self.threads,
        }


@dataclass(frozen=True)
class Judgement:
    """A quantization and what it does: `comparison` has the quantized model as A and the one it was made of as B."""

    quantized: Quantized
    comparison: Comparison
    speed: Speed
    text: str
    memory_before: int
    memory_after: int

    @property
    def loss_of_bits(self) -> Difference:
        """Bits per byte of the quantized model minus those of the other: above zero it predicts worse."""
        found = self.comparison.pairs[0].differences["bpb"]
        assert found is not None, "every block of a text has bytes"
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and for the metadata of what is kept."""
        made, full = self.comparison.models
        gap = self.loss_of_bits
        return {
            "text": self.text,
            "text_rule": self.comparison.text_rule,
            "tokens": self.comparison.tokens,
            "blocks": self.comparison.blocks,
            "bpb": {
                "full": full.bpb, "quantized": made.bpb, "difference": gap.value, "low": gap.low, "high": gap.high,
            },
            "loss": {"full": full.loss, "quantized": made.loss},
            "ppl": {"full": full.ppl, "quantized": made.ppl},
            "bytes": {"full": self.quantized.before_bytes, "quantized": self.quantized.after_bytes},
            "memory_bytes": {"full": self.memory_before, "quantized": self.memory_after},
            "tokens_per_s": self.speed.to_dict(),
        }  # fmt: skip


def judge(
    opened: ck.Checkpoint,
    kind: str,
    group_size: int | None = None,
    *,
    text: str,
    name: str,
    max_tokens: int = MAX_TOKENS,
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> Judgement:
    """Quantize an opened checkpoint beside itself and compare the two on `text`, which is called `name`.

    It stays as it is; the quantized model is let go. `progress` is told what is done and the share of it, 0 to 1.

    Raises:
        CheckpointError: it is quantized already, or a weight is not of finite numbers.
        DataError: the text is too short for an interval.
        DgsgptError: torchao is missing, or there is no such kind or group.
    """
    ck.refuse_quantized(opened.path, "quantized once more")
    report = progress or (lambda stage, share: None)
    report("rounding the weights", 0.0)
    made = quantize(opened.path, opened.config.model, kind, group_size)
    device = next(opened.model.parameters()).device
    small = GPT(opened.config.model).to(device)
    install(small, made.plan)
    ck.apply_weights(small, {n: t.to(device) for n, t in made.tensors.items()}, opened.path, widen=True)
    models = {"quantized": small.eval(), "full": opened.model}
    comparison = compare(
        [Subject.of(title, model, opened.tokenizer) for title, model in models.items()], text, max_tokens=max_tokens,
        document_separator=opened.config.data.document_separator, device=device,
        on_batch=lambda done, total: report("predicting the text", _LOADED + (_JUDGED - _LOADED) * done / total),
    )  # fmt: skip
    speed = measure_speed(opened.model, small, opened.tokenizer, text, rounds, report)
    report("done", 1.0)
    return Judgement(made, comparison, speed, name, resident_bytes(opened.model), resident_bytes(small))


def quantize(path: Path, config: ModelConfig, kind: str, group_size: int | None) -> Quantized:
    """The weights of the checkpoint at `path`, quantized as they are stored.

    Raises:
        DgsgptError: see `quantize_tensors`; or the file cannot be read.
    """
    try:
        return quantize_tensors(ck.load_tensors(path / ck.MODEL), config, kind, group_size)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {str(e).removeprefix(f'{path}: ')}") from e


def measure_speed(
    full: GPT, quantized: GPT, tokenizer: Tokenizer, text: str, rounds: int = ROUNDS, report: Progress | None = None
) -> Speed:
    """Both continue the beginning of `text` by their likeliest tokens, in turns, after one turn that does not count."""
    ids = prepare_prompt(tokenizer, text[:_PROMPT_CHARACTERS], full.config.block_size).ids
    found: dict[str, list[float]] = {"full": [], "quantized": []}
    for i in range(rounds + 1):
        for title, model in (("full", full), ("quantized", quantized)):
            tokens_per_s = _write(model, tokenizer, ids)
            if i:
                found[title].append(tokens_per_s)
        if report is not None:
            report("writing in turns", _JUDGED + (1 - _JUDGED) * i / rounds)
    device = next(full.parameters()).device
    told = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Speed(tuple(found["full"]), tuple(found["quantized"]), WRITTEN_TOKENS, told, torch.get_num_threads())


def _write(model: GPT, tokenizer: Tokenizer, ids: list[int]) -> float:
    """Tokens a second, reading the prompt excluded; texts do not end early."""
    context = Context(model, context_lead(tokenizer, model.config.block_size))
    logits = context.read(ids)
    begun = time.perf_counter()
    for _ in range(WRITTEN_TOKENS):
        logits = context.read([int(logits[: tokenizer.vocab_size].argmax())])  # which waits for a GPU, too
    return WRITTEN_TOKENS / (time.perf_counter() - begun)


__all__ = ["MAX_TOKENS", "Judgement", "Speed", "judge", "measure_speed", "quantize"]
