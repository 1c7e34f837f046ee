"""A checkpoint of ours as a folder that `AutoModelForCausalLM.from_pretrained` opens, without code of our own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgsgpt import checkpoint as ck
from dgsgpt import files
from dgsgpt.config import ModelConfig, load_config
from dgsgpt.data.text import shown
from dgsgpt.data.tokenizer import Tokenizer, load_tokenizer
from dgsgpt.errors import CheckpointError
from dgsgpt.interop.hf_card import model_card
from dgsgpt.interop.hf_config import Described, larger, write_config
from dgsgpt.interop.hf_names import Layout, links, shapes
from dgsgpt.interop.incoming import Progress
from dgsgpt.interop.shards import INDEX, SINGLE, SafetensorsWeights

if TYPE_CHECKING:
    from dgsgpt.interop.shards import Weights

MAX_SHARD_BYTES = 5_000_000_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Shard = dict[str, Tensor]


def write_hf(checkpoint: Path, dest: Path, *, dtype: str = "float32", progress: Progress) -> Path:
    """Write a checkpoint to the new folder `dest`: config.json, weights, generation_config.json, tokenizer, README.md.

    Everything goes to a staging folder beside it first, then one rename: at any instant `dest` is whole or not there.

    Raises:
        CheckpointError: the checkpoint is damaged, `dest` is not empty, a weight is too large for `dtype`, or the
            disk refuses.
        ConfigError: no model of transformers has this network; names the settings that stand in the way.
        DataError: the tokenizer cannot be written.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype={dtype} is not a type to store weights in; take {', '.join(DTYPES)}")
    dest = dest.absolute()
    _refuse_taken(dest)
    progress("Verifying", 0.0)
    ck.verify(checkpoint)
    ck.refuse_quantized(checkpoint, "exported")
    model = load_config(checkpoint / ck.CONFIG).model
    config = write_config(model)
    tokenizer = load_tokenizer(checkpoint / ck.TOKENIZER)
    weights = SafetensorsWeights([checkpoint / ck.MODEL])
    _check(weights, model, checkpoint)
    metadata = files.read_json(checkpoint / ck.METADATA) or {}

    def fill(staging: Path) -> None:
        ids = _special_ids(tokenizer)
        told = {**config, **ids, "dtype": dtype, "torch_dtype": dtype}
        (staging / "config.json").write_text(files.to_json(told, 2) + "\n", encoding="utf-8")
        (staging / "generation_config.json").write_text(files.to_json(ids, 2) + "\n", encoding="utf-8")
        card = model_card(model, larger(model).family, metadata, dtype)
        (staging / "README.md").write_text(card, encoding="utf-8")
        _write_tokenizer(tokenizer, staging, model)
        _write_weights(staging, _outgoing(model, weights, DTYPES[dtype], progress))

    _build(dest, fill)
    return dest


def _refuse_taken(dest: Path) -> None:
    if dest.is_symlink() or (dest.exists() and (not dest.is_dir() or any(dest.iterdir()))):
        raise CheckpointError(f"{shown(dest)}: is already there; give a new folder, or an empty one")


def _build(dest: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside `dest`, then give it that name; on any failure nothing of it stays."""
    from safetensors import SafetensorError

    staging = dest.with_name(f".{dest.name}.part-{os.getpid()}")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        fill(staging)
        for path in staging.iterdir():
            _sync(path)
        if dest.is_dir():
            dest.rmdir()  # it is empty; not every system renames onto one
        staging.rename(dest)
        files.fsync_directory(dest.parent)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(staging, ignore_errors=True)
        reason = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        raise CheckpointError(
            f"{shown(dest)}: cannot be written: {reason}; free some space or give another place"
        ) from e
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _check(weights: Weights, model: ModelConfig, checkpoint: Path) -> None:
    """Names and shapes against the config, before anything is written."""
    own = {name: tuple(tensor.shape) for name, tensor in shapes(model).items()}
    given = {name: spec.shape for name, spec in weights.specs.items()}
    if own != given:
        name = next(n for n in sorted({*own, *given}) if own.get(n) != given.get(n))
        raise CheckpointError(
            f"{shown(checkpoint)}: tensor {name} is {given.get(name, 'missing')}, the config asks for "
            f"{own.get(name, 'none')}; the weights belong to another config"
        )


def _special_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Ids that begin and end a text; explicitly null where there is none, since families have defaults of their own."""
    ends, begin = tokenizer.ends_of_text, tokenizer.begin_of_text
    if begin is None and tokenizer.kind in ("bpe", "gpt2"):
        begin = tokenizer.end_of_text  # as in GPT-2: what ends a text also stands between two
    return {
        "bos_token_id": begin,
        "eos_token_id": list(ends) if len(ends) > 1 else tokenizer.end_of_text,
        "pad_token_id": None,
    }


def _write_tokenizer(tokenizer: Tokenizer, staging: Path, model: ModelConfig) -> None:
    from dgsgpt.interop.hf_tokenizer import write_hf_tokenizer

    write_hf_tokenizer(tokenizer, staging, model.block_size)


# ---------------------------------------------------------------- weights
def _outgoing(
    model: ModelConfig, weights: Weights, dtype: torch.dtype, progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    """Their names and tensors, one after another; biases that only they have are zeros."""
    described: Described = larger(model)
    family, own = described.family, shapes(described.model)
    told = [name for name in own if not name.endswith(described.unbiased)] if described.unbiased else list(own)
    wanted = list(links(family, told, Layout.of_export(family), model.moe.n_expert if model.moe else 0))
    for i, link in enumerate(wanted):
        progress("Writing weights", i / len(wanted))
        ours = [_read(weights, name, own[name], dtype) for name in link.ours]
        for name, tensor in zip(link.theirs, link.outward(ours), strict=True):
            # Tensors that were cut from one share its memory, which the format refuses.
            yield (
                name,
                tensor.clone(memory_format=torch.contiguous_format)
                if len(ours) < len(link.theirs)
                else tensor.contiguous(),
            )


def _read(weights: Weights, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
    if name not in weights.specs:  # a bias that only the family has
        return torch.zeros(like.shape, dtype=dtype)
    given = weights.read(name)
    if not bool(torch.isfinite(given).all()):
        raise CheckpointError(f"tensor {name} holds NaN or infinite numbers; export an earlier checkpoint")
    tensor = given.to(dtype)
    if bool(tensor.isinf().any()):
        largest = float(given.abs().max())
        raise CheckpointError(
            f"tensor {name} reaches {largest:g}, more than {dtype} holds; take bfloat16 or float32".replace(
                "torch.", ""
            )
        )
    return tensor


def _write_weights(staging: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """One file, or several with an index; in memory is one file at a time."""
    from safetensors.torch import save_file

    total, shard, size = 0, Shard(), 0
    written: list[tuple[Path, list[str]]] = []

    def close() -> None:
        path = staging / f"part-{len(written)}"
        save_file(shard, str(path), {"format": "pt"})
        written.append((path, list(shard)))
        shard.clear()

    for name, tensor in tensors:
        if shard and size + tensor.nbytes > MAX_SHARD_BYTES:
            close()
            size = 0
        shard[name] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    close()
    if len(written) == 1:
        written[0][0].rename(staging / SINGLE)
        return
    places: dict[str, str] = {}
    for i, (path, names) in enumerate(written, 1):
        final = f"model-{i:05d}-of-{len(written):05d}.safetensors"
        path.rename(staging / final)
        places |= dict.fromkeys(names, final)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (staging / INDEX).write_text(files.to_json(index, 2) + "\n", encoding="utf-8")
