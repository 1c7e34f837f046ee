"""Whole checkpoints of tiny untrained models, written by the function the trainer uses; nothing is trained."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from dgsgpt import checkpoint as ck
from dgsgpt.config import RunConfig, build_config
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.model import GPT
from dgsgpt.rules import put
from dgsgpt.runs import Run


def save(run: Run, step: int, characters: str | None = None, **metadata: Any) -> Path:
    """A checkpoint of `run`; with `characters` its tokenizer knows only these."""
    tokenizer = CharTokenizer(characters) if characters else ByteTokenizer()
    values = put(run.config.model_dump(), "data.tokenizer", {"kind": tokenizer.kind})
    config = build_config(put(values, "model.vocab_size", tokenizer.vocab_size))
    torch.manual_seed(step)
    return _write(run, step, config, tokenizer, GPT(config.model).state_dict(), metadata)


def save_filled(run: Run, step: int, value: float) -> Path:
    """A checkpoint whose weights are all `value`, e.g. NaN as a training that diverged would have left them."""
    config = build_config(put(run.config.model_dump(), "model.vocab_size", 256))
    tensors = {name: torch.full_like(tensor, value) for name, tensor in GPT(config.model).state_dict().items()}
    return _write(run, step, config, ByteTokenizer(), tensors, {})


def save_script(run: Run, step: int, text: str) -> Path:
    """A checkpoint that writes `text`, at most 255 bytes, at temperature 0 after a prompt of one byte.

    Its only layer adds nothing, each position is a unit vector of its own, and the head says which byte follows it.
    """
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 256, "block_size": 256, "vocab_size": 256}
    model = {**sizes, "rope": None, "tie_embeddings": False}
    config = build_config({"data": run.config.data.model_dump(), "model": model})
    tensors = {name: torch.zeros_like(tensor) for name, tensor in GPT(config.model).state_dict().items()}
    tensors["positions.weight"] = torch.eye(256)
    tensors["norm.weight"] = torch.ones(256)
    for place, byte in enumerate(text.encode()):
        tensors["head.weight"][byte, place] = 0.5  # behind the norm a position is 16 long: 8 nats more than the rest
    return _write(run, step, config, ByteTokenizer(), tensors, {})


def _write(
    run: Run,
    step: int,
    config: RunConfig,
    tokenizer: Tokenizer,
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, Any],
) -> Path:
    told = {
        "run_id": run.id,
        "step": step,
        "saved_at": time.time() - 1000 + step,
        "tokens": step * 128,
        "flops": step * 1e6,
        "train_time_s": step * 0.1,
        "params": 12345,
        "active_params": 12345,
        "loss_train": 2.5,
        "loss_val": 2.6,
        "ppl_val": 13.46,
        "bpb_val": 1.8,
        "lr": 1e-3,
        "recent_steps": [step - 1, step],
        "recent_losses": [2.7, 2.5],
        "recent_lrs": [2e-3, 1e-3],
        "corpus": "austen",
        "data_fingerprint": "f" * 64,
        "tokenizer_sha256": tokenizer.sha256,
        "tokenizer_kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "device": "cpu: test",
        "torch_version": "2.0",
        "python_version": "3.11",
        "dgsgpt_version": "0.1.0",
    }
    return ck.save_checkpoint(
        run.path / "checkpoints",
        step,
        model_tensors=tensors,
        optimizer_tensors={"rng.cpu": torch.get_rng_state()},
        state={"step": step, "tokens": step * 128},
        config=config,
        tokenizer=tokenizer,
        metadata={**told, **metadata},
    )


def flip_a_bit(path: Path) -> None:
    """Damage the weights without changing their size."""
    data = bytearray((path / ck.MODEL).read_bytes())
    data[-1] ^= 1
    (path / ck.MODEL).write_bytes(data)
