"""A Hugging Face model folder as a model of ours: config.json, weights, tokenizer. No code in it is ever run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dgsgpt.config import ModelConfig
from dgsgpt.data.text import shown
from dgsgpt.errors import CheckpointError
from dgsgpt.hardware import detect
from dgsgpt.interop.hf_config import Described, own_config, read_config
from dgsgpt.interop.hf_keys import read_object, shorten
from dgsgpt.interop.hf_names import BUFFERS, LM_HEAD, Layout, Link, links, shapes
from dgsgpt.interop.incoming import Incoming, Progress
from dgsgpt.interop.shards import FLOATS, Weights, fingerprint, open_weights

if TYPE_CHECKING:
    from dgsgpt.data.tokenizer import Tokenizer

CONFIG = "config.json"
KINDS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_hf(folder: Path, progress: Progress) -> Incoming:
    """The model in a folder of Hugging Face's layout, in float32.

    Memory is that of one model: tensors are read one after another.

    Raises:
        CheckpointError: a file is missing or damaged, the network is none of ours, or names, shapes or types of the
            weights do not match config.json.
        DataError: the tokenizer cannot be read.
    """
    from dgsgpt.interop.hf_tokenizer import read_hf_tokenizer

    values = read_object(folder / CONFIG)
    described = read_config(values, folder / CONFIG)
    tokenizer = read_hf_tokenizer(folder)
    _check_vocabulary(described.model, tokenizer, folder)
    weights = open_weights(folder)
    _check_memory(weights, folder)
    tensors = read_tensors(described, weights, folder, progress)
    model, dropped = settle(described, values, tensors)
    for name in dropped:
        del tensors[name]
    sha256, each = fingerprint([folder / CONFIG, *weights.paths], lambda share: progress("Hashing", share))
    facts: dict[str, Any] = {"sha256": sha256, "files": each}
    facts["model_type"] = described.family.model_type
    facts["stored_as"] = sorted({shown(spec.dtype) for spec in weights.specs.values()})
    return Incoming(
        family=described.family.title,
        model=model,
        tensors=tensors,
        tokenizer=tokenizer,
        facts=facts,
        warnings=() if model is not described.model else described.warnings,
    )


def _check_vocabulary(model: ModelConfig, tokenizer: Tokenizer, folder: Path) -> None:
    if tokenizer.vocab_size > (model.vocab_size or 0):
        raise CheckpointError(
            f"{shown(folder)}: the tokenizer has {tokenizer.vocab_size:,} ids, the model's embedding only "
            f"{model.vocab_size:,} rows; they do not belong together"
        )


def _check_memory(weights: Weights, folder: Path) -> None:
    """A file may be larger than memory, or claim to be: it takes no room on a disk that stores holes."""
    needed, free = sum(4 * spec.numel for spec in weights.specs.values()), detect(folder).ram_available_bytes
    if needed > free:
        raise CheckpointError(
            f"{shown(folder)}: the weights take {needed / 1e9:,.1f} GB of memory in float32, "
            f"{free / 1e9:,.1f} GB are free; close other programs or take a smaller model"
        )


# ---------------------------------------------------------------- weights
def read_tensors(described: Described, weights: Weights, folder: Path, progress: Progress) -> dict[str, Tensor]:
    """Weights by our names, in float32; biases that the family does not have are zeros.

    Raises:
        CheckpointError: names a tensor that is missing, left over, or of another shape or type than config.json says.
    """
    own = shapes(described.model)
    told = [name for name in own if not name.endswith(described.unbiased)] if described.unbiased else list(own)
    layout = Layout.found(described.family, weights.specs)
    n_expert = described.model.moe.n_expert if described.model.moe else 0
    wanted = list(links(described.family, told, layout, n_expert))
    _check(wanted, own, weights, folder, described.model.tie_embeddings)
    tensors = {name: torch.zeros(own[name].shape) for name in set(own) - set(told)}
    for i, link in enumerate(wanted):
        progress("Reading weights", i / len(wanted))
        # Copies, also of what is float32 already: what was read is a view of the file.
        parts = [weights.read(name).to(torch.float32) for name in link.theirs]
        for name, tensor in zip(link.ours, link.inward(parts), strict=True):
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
    if described.model.tie_embeddings and LM_HEAD in weights.specs:
        _check_tied(weights, tensors["embed.weight"], folder)
    return {name: tensors[name] for name in own}


def _check(wanted: list[Link], own: Mapping[str, Tensor], weights: Weights, folder: Path, tied: bool) -> None:
    """Names, shapes and types, before anything is read."""
    expected: dict[str, tuple[int, ...]] = {}
    for link in wanted:
        theirs = link.outward([own[name] for name in link.ours])
        expected |= {name: tuple(tensor.shape) for name, tensor in zip(link.theirs, theirs, strict=True)}
    for name, shape in expected.items():
        spec = weights.specs.get(name)
        if spec is None:
            raise CheckpointError(
                f"{shown(folder)}: tensor {name} is missing; the weights are not complete for {CONFIG}"
            )
        if spec.shape != shape:
            raise CheckpointError(
                f"{shown(folder)}: tensor {name} has the shape {spec.shape}, by {CONFIG} it must be {shape}"
            )
        if spec.dtype not in FLOATS:
            raise CheckpointError(
                f"{shown(folder)}: tensor {name} is stored as {shown(spec.dtype)}; only {', '.join(FLOATS)} are read, "
                "so take the model before it was quantised"
            )
    ignored = {LM_HEAD} if tied else set()
    extra = sorted(n for n in set(weights.specs) - set(expected) - ignored if not BUFFERS.fullmatch(n))
    if extra:
        raise CheckpointError(
            f"{shown(folder)}: tensor {shorten(extra[0])} has no place in the network that {CONFIG} describes"
            + (f" (nor have {len(extra) - 1} more)" if len(extra) > 1 else "")
        )


def _check_tied(weights: Weights, embedding: Tensor, folder: Path) -> None:
    """A tied model may repeat its embedding as the output layer; another one would be lost."""
    spec = weights.specs[LM_HEAD]
    if spec.shape != tuple(embedding.shape) or spec.dtype not in FLOATS or not torch.equal(
        weights.read(LM_HEAD).to(torch.float32), embedding
    ):  # fmt: skip
        raise CheckpointError(
            f"{shown(folder)}: {LM_HEAD} is not the token embedding, though {CONFIG} ties them; if the model has an "
            'output layer of its own, write "tie_word_embeddings": false'
        )


def settle(
    described: Described, values: dict[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[ModelConfig, list[str]]:
    """The settings to keep, and names of tensors that these do not have.

    An export of ours says what the model was before biases of the family were added to it. That is believed while
    all other keys describe the same network and those biases are still zero.
    """
    own = own_config(values, described)
    if own is None:
        return described.model, []
    dropped = sorted(set(tensors) - set(shapes(own)))
    if any(bool(tensors[name].any()) for name in dropped):
        return described.model, []
    return own, dropped
