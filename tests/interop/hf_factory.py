"""Checkpoints of tiny random networks, and what transformers makes of the folders they are exported to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgsgpt import checkpoint as ck
from dgsgpt.config import ModelConfig, build_config
from dgsgpt.data.alphabets import ByteTokenizer
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.interop.hf_export import write_hf
from dgsgpt.interop.hf_import import read_hf
from dgsgpt.interop.hf_tokenizer import write_hf_tokenizer
from dgsgpt.interop.incoming import Incoming
from dgsgpt.model import GPT

TINY: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 64, "vocab_size": 256}


def quiet(what: str, share: float) -> None:
    """Progress that nobody watches."""


def network(**settings: Any) -> GPT:
    """A tiny network whose weights are all random, gains of norms and biases too."""
    config = ModelConfig.model_validate({**TINY, **settings})
    torch.manual_seed(1)
    model = GPT(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    return model


def checkpoint(folder: Path, model: GPT, tokenizer: Tokenizer | None = None) -> Path:
    """A whole checkpoint of `model`."""
    tokenizer = tokenizer or ByteTokenizer()
    settings: dict[str, Any] = {"model": model.config.model_dump(), "data": {"tokenizer": {"kind": tokenizer.kind}}}
    if tokenizer.kind == "bpe":
        settings["data"]["tokenizer"]["vocab_size"] = tokenizer.vocab_size
    return ck.save_checkpoint(
        folder,
        7,
        model_tensors=model.state_dict(),
        optimizer_tensors={},
        state={"step": 7, "tokens": 700},
        config=build_config(settings),
        tokenizer=tokenizer,
        metadata={"run_id": "tiny", "step": 7, "tokens": 700, "corpus": "austen", "loss_val": 2.5, "params": 1234},
    )


def exported(folder: Path, model: GPT, **options: Any) -> Path:
    """The folder that `model` is exported to."""
    return write_hf(checkpoint(folder / "ours", model), folder / "theirs", progress=quiet, **options)


def imported(folder: Path) -> Incoming:
    """What a folder of theirs is here."""
    return read_hf(folder, quiet)


def rebuilt(incoming: Incoming) -> GPT:
    """The network that was imported."""
    model = GPT(incoming.model).eval()
    model.load_state_dict(dict(incoming.tensors))
    return model


def tokens(vocab_size: int = 256, length: int = 40) -> Tensor:
    """Two rows of random tokens."""
    return torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def logits(model: Any, given: Tensor) -> Tensor:
    """Logits of a model of either side."""
    found: Tensor = model(given).logits
    return found.float()


def opened(folder: Path) -> Any:
    """What transformers makes of a folder: no code from it, nothing from elsewhere."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, trust_remote_code=False).eval()


def saved_by_transformers(folder: Path, model: Any, **options: Any) -> Path:
    """A folder that transformers wrote, with a tokenizer beside it."""
    model.save_pretrained(folder, **options)
    write_hf_tokenizer(ByteTokenizer(), folder, 64)
    return folder


def edit(folder: Path, **changes: Any) -> Path:
    """Change keys of config.json; `...` takes a key away."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))
    return folder


def copied(folder: Path, to: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(folder, to)
    return to
