"""Whole checkpoints of tiny untrained models, written by the function the trainer uses; nothing is trained."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from dgsgpt import checkpoint as ck
from dgsgpt.config import build_config
from dgsgpt.data.alphabets import ByteTokenizer, CharTokenizer
from dgsgpt.model import GPT
from dgsgpt.rules import put
from dgsgpt.runs import Run


def save(run: Run, step: int, characters: str | None = None, **metadata: Any) -> Path:
    """A checkpoint of `run`; with `characters` its tokenizer knows only these."""
    tokenizer = CharTokenizer(characters) if characters else ByteTokenizer()
    values = put(run.config.model_dump(), "data.tokenizer", {"kind": tokenizer.kind})
    config = build_config(put(values, "model.vocab_size", tokenizer.vocab_size))
    torch.manual_seed(step)
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
        model_tensors=GPT(config.model).state_dict(),
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


def spoil(path: Path, value: float) -> None:
    """Fill the weights of a checkpoint with `value`, as a training that diverged would have left them."""
    opened = ck.load_checkpoint(path)
    tensors = {name: torch.full_like(tensor, value) for name, tensor in opened.model.state_dict().items()}
    folder = path.parent
    shutil.rmtree(path)
    ck.save_checkpoint(
        folder,
        opened.metadata["step"],
        model_tensors=tensors,
        optimizer_tensors={"rng.cpu": torch.get_rng_state()},
        state={"step": opened.metadata["step"]},
        config=opened.config,
        tokenizer=opened.tokenizer,
        metadata=dict(opened.metadata),
    )
