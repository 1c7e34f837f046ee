"""The library that runs a `tokenizer.json`, and how it is kept from surprising us."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dgsgpt.data.foreign_bounds import check_growth, check_size
from dgsgpt.data.foreign_regex import check_expressions
from dgsgpt.data.text import shown
from dgsgpt.errors import DataError

if TYPE_CHECKING:
    import tokenizers

MAX_IDS = 1 << 20
PARTS = ("normalizer", "pre_tokenizer", "decoder")


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """Turn what the library raises into an error that a person may meet."""
    try:
        yield
    except Exception as e:
        raise DataError(f"the hf tokenizer cannot encode this text: {_first_line(e)}") from e
    except BaseException as e:
        # The library is written in Rust, whose panics are no Exception and have no importable type.
        if type(e).__name__ != "PanicException":
            raise
        raise DataError(f"the hf tokenizer cannot encode this text: {_first_line(e)}") from e


def _first_line(e: BaseException) -> str:
    # What it quotes of a damaged file may hold control characters.
    return shown((str(e).splitlines() or [type(e).__name__])[0][:160])


def build_backend(description: Any) -> tokenizers.Tokenizer:
    """The library's tokenizer for a `tokenizer.json`, without truncation, padding or sampling.

    Raises:
        ValueError: the description is damaged or unsafe.
    """
    from tokenizers import Tokenizer

    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        raise ValueError("it is no tokenizer.json (an object with a model)")
    check_size(description)
    check_expressions({key: value for key, value in description.items() if key not in ("model", "added_tokens")})
    try:
        with told_in_one_line():
            backend = Tokenizer.from_str(json.dumps(description))
    except DataError as e:
        raise ValueError(f"it is no valid tokenizer.json ({_first_line(e.__cause__ or e)})") from None
    backend.no_truncation()
    backend.no_padding()
    for sampling in ("dropout", "alpha"):
        if hasattr(backend.model, sampling):
            setattr(backend.model, sampling, None)
    backend.encode_special_tokens = True
    check_growth(components(backend))
    _check_ids(backend, description)
    return backend


def _check_ids(backend: tokenizers.Tokenizer, description: dict[str, Any]) -> None:
    names = vocabulary(backend)
    if not names:
        raise ValueError("its vocabulary is empty")
    if max(names.values()) >= MAX_IDS:
        raise ValueError(f"its largest id {max(names.values()):,} is over the limit of {MAX_IDS - 1:,}")
    if len(set(names.values())) < len(names):
        first, second, token = _of_one_id(names)
        raise ValueError(f"its tokens {first[:40]!r} and {second[:40]!r} have one id, {token}; each needs its own")
    for added in description.get("added_tokens") or []:
        if names.get(added["content"]) != added["id"]:
            raise ValueError(f"its added token {added['content'][:40]!r} has the id of another token, {added['id']}")


def _of_one_id(names: dict[str, int]) -> tuple[str, str, int]:
    """Two tokens that have the same id, and that id; there must be some."""
    ordered = sorted(names, key=lambda name: (names[name], name))
    return next((a, b, names[a]) for a, b in itertools.pairwise(ordered) if names[a] == names[b])


def vocabulary(backend: tokenizers.Tokenizer) -> dict[str, int]:
    """Every token and its id, added ones included."""
    names: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    return names


def components(backend: tokenizers.Tokenizer) -> dict[str, list[dict[str, Any]]]:
    """The normalizer, pre-tokenizer and decoder as lists of plain steps, each with every field written out."""
    from tokenizers import Tokenizer, models

    empty = Tokenizer(models.BPE())  # without the vocabulary, writing out is quick
    for kind in PARTS:
        part = getattr(backend, kind)
        if part is not None:
            setattr(empty, kind, part)
    written = json.loads(empty.to_str())
    return {kind: list(_flat(written[kind])) for kind in PARTS}


def _flat(part: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if part is not None and part["type"] == "Sequence":
        for inner in next(value for key, value in part.items() if key != "type"):
            yield from _flat(inner)
    elif part is not None:
        yield part


def unknown_id(backend: tokenizers.Tokenizer, description: dict[str, Any]) -> int | None:
    """Id of the token that stands for what the vocabulary does not have, or None."""
    name = getattr(backend.model, "unk_token", None)
    if name is not None:
        token: int | None = backend.token_to_id(name)
        return token
    given = description["model"].get("unk_id")
    return given if type(given) is int else None
