"""A tokenizer that a config names by its file (`data.tokenizer.kind: file`)."""

from __future__ import annotations

from pathlib import Path

from dgsgpt.data.text import shown
from dgsgpt.data.tokenizer import Tokenizer, load_tokenizer_file
from dgsgpt.errors import DataError

SHOWN = 12


def named_tokenizer(file: str) -> Tokenizer:
    """The tokenizer in `file`.

    Raises:
        DataError: the file is missing or is no tokenizer.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(
            f"data.tokenizer.file={shown(path)}: no such file; a model's tokenizer.json lies in its checkpoint. Where "
            "a run was moved: `dgsgpt resume RUN --set data.tokenizer.file=RUN_DIR/begin/tokenizer.json`"
        )
    return load_tokenizer_file(path)


def check_characters(tokenizer: Tokenizer, text: str, source: str) -> None:
    """Refuse a text that a tokenizer made for another one cannot encode.

    Raises:
        DataError: lists the characters it does not know.
    """
    unknown = tokenizer.unknown_characters("".join(sorted(set(text))))
    if unknown:
        listed = ", ".join(map(repr, unknown[:SHOWN]))
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        raise DataError(
            f"{source}: has characters that the model's {tokenizer.kind} tokenizer does not know: {listed}{more}; "
            "remove them, or start from a model with a byte or bpe tokenizer"
        )
