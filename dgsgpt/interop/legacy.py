"""Models of the original DGS-GPT: its `.pth` files, with their config or as a bare state dict."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgsgpt.config import build_config
from dgsgpt.data.alphabets import CharTokenizer
from dgsgpt.data.text import read_file, shown
from dgsgpt.errors import CheckpointError, ConfigError
from dgsgpt.interop.incoming import Incoming, Progress
from dgsgpt.interop.legacy_layout import Layout, build_model, translate
from dgsgpt.interop.sandbox import TorchFile, read_torch_file
from dgsgpt.rules import put

if TYPE_CHECKING:
    from torch import Tensor

FAMILY = "DGS-GPT"
STATE, OPTIMIZER, CONFIG = "model_state_dict", "optimizer_state_dict", "config"
# Its training settings, and what they are called here.
TRAINING = {
    "learning_rate": "lr",
    "weight_decay": "weight_decay",
    "batch_size": "micro_batch_size",
    "max_iters": "steps",
    "grad_clip": "grad_clip",
    "warmup_iters": "schedule.warmup_steps",
}
# Private-use characters stand for an alphabet that is not known: the plane everyone has, then planes 15 and 16.
_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def is_legacy(names: Iterable[str]) -> bool:
    """Whether these are the names of an original DGS-GPT's weights."""
    found = {_plain_name(name.removeprefix(f"{STATE}/")) for name in names}
    return {"token_emb.weight", "pos_emb.weight", "lm_head.bias"} <= found


def read_legacy(path: Path, vocab: Path | None, given: Mapping[str, int], progress: Progress) -> Incoming:
    """The model in a `.pth` file of the original DGS-GPT.

    `vocab` is the text whose characters were its vocabulary. `given` holds settings of its config (`n_head`, `moe_k`)
    for files that have none.

    Raises:
        CheckpointError: the file cannot be opened or is not such a model; something is missing, contradicts itself or
            is not known; the message says what to give.
        DataError: `vocab` cannot be read.
    """
    name = shown(path)
    progress("opening the file", 0.05)
    file = read_torch_file(path, leave_out=(f"{OPTIMIZER}/state/*/exp_avg*",))
    weights, saved = _parts(file, name)
    layout = _layout(weights, name)
    _check(weights, layout, name)
    model = build_model(layout, _settings(layout, saved, given, name), name)
    progress("renaming the weights", 0.6)
    train, warnings = _training(saved)
    if vocab is None:
        warnings.append(
            "no vocabulary was given, so its text will be private-use characters; import it again with --vocab and the "
            "text file it was trained on (vocab.txt)"
        )
    return Incoming(
        family=FAMILY,
        model=model,
        tensors=dict(translate(weights, layout)),
        tokenizer=_tokenizer(vocab, layout.vocab_size, name),
        train=train,
        facts={**_facts(file, saved), "placeholder_vocabulary": vocab is None},
        warnings=tuple(warnings),
        step=_step(file),
    )


# ---------------------------------------------------------------- what the file says
def _parts(file: TorchFile, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights by their plain names, without buffers, and the saved config."""
    whole = any(key.startswith(f"{STATE}/") for key in file.tensors)
    found = {key.removeprefix(f"{STATE}/"): t for key, t in file.tensors.items() if not whole or key.startswith(STATE)}
    if not is_legacy(found):
        raise CheckpointError(
            f"{name}: is not a model of the original DGS-GPT (it has no token_emb, pos_emb and lm_head.bias); for one "
            "of Hugging Face give its folder with config.json"
        )
    weights: dict[str, Tensor] = {}
    for key, tensor in found.items():
        plain = _plain_name(key)
        if plain in weights:
            raise CheckpointError(f"{name}: has {plain} twice, with and without a prefix; save one model to one file")
        if re.fullmatch(r"blocks\.\d+\.sa\.tril", plain):
            continue  # the causal mask, a buffer
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name}: {plain} is of {tensor.dtype}, weights must be floating-point numbers")
        weights[plain] = tensor
    saved = file.values.get(CONFIG) if whole and isinstance(file.values, dict) else None
    if saved is not None and not isinstance(saved, dict):
        raise CheckpointError(f"{name}: its config is a {type(saved).__name__}, not settings; the file is damaged")
    return weights, saved or {}


def _plain_name(name: str) -> str:
    """A weight's name without what torch.compile and data parallelism put before it."""
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _layout(weights: Mapping[str, Tensor], name: str) -> Layout:
    for key in ("token_emb.weight", "pos_emb.weight"):
        if weights[key].ndim != 2:
            raise CheckpointError(f"{name}: {key} has the shape {tuple(weights[key].shape)}, it must have two numbers")
    blocks = {match[1] for match in (re.match(r"blocks\.(\d{1,6})\.", key) for key in weights) if match}
    experts = {
        match[1] for match in (re.match(r"blocks\.0\.moe\.experts\.(\d{1,6})\.", key) for key in weights) if match
    }
    vocab_size, n_embd = weights["token_emb.weight"].shape
    joint = any(".sa.mha." in key for key in weights)
    kind = "multihead" if joint else "grouped_query"
    return Layout(len(blocks), n_embd, weights["pos_emb.weight"].size(0), vocab_size, kind, len(experts))


def _check(weights: Mapping[str, Tensor], layout: Layout, name: str) -> None:
    """Every weight is there in its shape, and nothing else."""
    wanted = layout.shapes()
    if missing := [key for key in wanted if key not in weights]:
        raise CheckpointError(f"{name}: has no {missing[0]}{_more(missing)}; the file is not complete")
    if unknown := [key for key in weights if key not in wanted]:
        raise CheckpointError(
            f"{name}: has {shown(unknown[0])}{_more(unknown)}, which the original DGS-GPT does not; it is another model"
        )
    for key, shape in wanted.items():
        if weights[key].shape != shape:
            raise CheckpointError(
                f"{name}: {key} has the shape {tuple(weights[key].shape)} where the other weights ask for {shape}; the "
                "file is of another model or damaged"
            )


def _more(keys: list[str]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _settings(layout: Layout, saved: Mapping[str, Any], given: Mapping[str, int], name: str) -> dict[str, Any]:
    """`n_head`, `moe_k` and `dropout`; weights, config and `--set` must not contradict each other."""
    asked = ["n_head", "moe_k"] if layout.moe_num_experts else ["n_head"]
    told: dict[str, Any] = {**vars(layout), "use_moe": layout.moe_num_experts > 0}
    if not layout.moe_num_experts:
        del told["moe_num_experts"]  # the config of a dense model has one, too
    allowed = [*asked, *(key for key in told if key not in ("attention_type", "use_moe"))]
    if strangers := [key for key in given if key not in allowed]:
        raise CheckpointError(f"{name}: --set {shown(strangers[0])} is not among its settings: {', '.join(allowed)}")
    for source, values in (("its config has", saved), ("--set has", given)):
        for key in (key for key in (*told, *asked) if key in values):
            value = shown(repr(values[key]))
            if key in told and values[key] != told[key]:
                raise CheckpointError(
                    f"{name}: {source} {key}={value}, but the file's is {told[key]!r}; "
                    + ("leave it out" if values is given else "its weights belong to another config")
                )
            if key in asked and (type(values[key]) is not int or values[key] < 1):
                raise CheckpointError(f"{name}: {source} {key}={value}, it must be a whole number from 1")
        told |= {key: values[key] for key in asked if key in values}
    if missing := [key for key in asked if key not in told]:
        example = " ".join(f"--set {key}={ {'n_head': 4, 'moe_k': 1}[key] }" for key in missing)
        raise CheckpointError(
            f"{name}: its weights do not tell {' and '.join(missing)}, and no config in it does; give what it was "
            f"trained with, e.g. {example}"
        )
    return {**{key: told[key] for key in asked}, "dropout": _dropout(saved)}


def _dropout(saved: Mapping[str, Any]) -> float:
    share = saved.get("dropout")
    return float(share) if isinstance(share, float | int) and 0 <= share < 1 else 0.0


def _training(saved: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings of `train:` from its config; those that dgsgpt does not allow are told as warnings."""
    train: dict[str, Any] = {}
    warnings = []
    for key, path in TRAINING.items():
        if key not in saved:
            continue
        candidate = put(train, path, saved[key])
        try:
            build_config({"train": candidate})
        except ConfigError:
            warnings.append(f"its {key}={shown(repr(saved[key]))} is not possible as train.{path}; the default stands")
        else:
            train = candidate
    return train, warnings


def _facts(file: TorchFile, saved: Mapping[str, Any]) -> dict[str, Any]:
    """What the metadata tells of the file beside its source."""
    known = {*TRAINING, *Layout.__dataclass_fields__, "n_head", "dropout", "use_moe", "moe_k", "n_query_groups"}
    optimizer = any(key.startswith(f"{OPTIMIZER}/") for key in file.tensors)
    return {
        "sha256": file.sha256,
        "settings": {key: _told(saved[key]) for key in sorted(known & set(saved)) if len(repr(saved[key])) <= 100},
        "optimizer_state": "dropped" if optimizer else "none",
    }


def _told(value: Any) -> Any:
    """A number as it is, anything else as words for a person."""
    return value if value is None or isinstance(value, bool | int | float) else shown(str(value))


def _step(file: TorchFile) -> int:
    """Steps it was trained for, which only the optimizer has counted; 0 where it was not saved."""
    step = file.tensors.get(f"{OPTIMIZER}/state/0/step")
    if step is None or step.numel() != 1 or not 0 <= step.item() < 1e9:
        return 0
    return int(step.item())


def _tokenizer(vocab: Path | None, size: int, name: str) -> CharTokenizer:
    """The characters of `vocab` in code-point order, as the original program numbers them."""
    if vocab is None:
        private = [chr(code) for plane in _PRIVATE for code in plane]
        if size > len(private):
            raise CheckpointError(
                f"{name}: {size:,} characters are more than a placeholder can name; give its text with --vocab"
            )
        return CharTokenizer("".join(private[:size]))
    characters = set(read_file(vocab))
    if len(characters) == size - 1 and vocab.expanduser().read_bytes()[:3] == b"\xef\xbb\xbf":
        characters.add("\ufeff")  # the original program counted a byte-order mark as a character
    if len(characters) != size:
        raise CheckpointError(
            f"{shown(vocab)}: has {len(characters)} different characters, the model in {name} knows {size}; give the "
            "text that it was trained with"
        )
    return CharTokenizer("".join(sorted(characters)))
