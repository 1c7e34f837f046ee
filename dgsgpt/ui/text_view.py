"""A look at a text: its beginning, the same text cut into tokens, and what the tokens are like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dgsgpt.data.dataset import Dataset
from dgsgpt.data.tokenizer import Tokenizer
from dgsgpt.format import number, percent
from dgsgpt.ui.atoms import bar, table_html
from dgsgpt.ui.markup import Html, join, markup
from dgsgpt.ui.theme import MONO, c

LOOK_CHARACTERS = 1200
COUNTED_TOKENS = 5_000_000
TOP = 14
LONGEST = 9  # bytes; longer tokens share the last row


# ---------------------------------------------------------------- tokens of a passage
def pieces(tokenizer: Tokenizer, text: str) -> list[tuple[int, str]]:
    """The text as (id, readable piece), one a token; bytes of a cut character are written as `\\xNN`."""
    return [(token, readable(tokenizer.token_bytes(token))) for token in tokenizer.encode(text)]


def readable(raw: bytes) -> str:
    """The text of a token's bytes; bytes that are no whole characters as `\\xNN`."""
    return raw.decode("utf-8", "backslashreplace")


def visible(piece: str) -> str:
    """A token in a table: white space by a mark."""
    return piece.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥") or "(empty)"


def tokens_html(parts: Sequence[tuple[int, str]], height: int = 330) -> Html:
    """Tokens one after another on two alternating tints; a line end keeps its place and gets a mark."""
    tints = (c("accentbg"), c("idlebg"))
    spans = join(
        markup(
            '<span title="token {}" style="background:{};border-radius:2px">{}</span>',
            token, tints[i % 2], piece.replace("\n", "⏎\n"),
        )
        for i, (token, piece) in enumerate(parts)
    )  # fmt: skip
    return _well(spans, height)


def text_html(text: str, height: int = 330) -> Html:
    """Plain text as it is in the file."""
    return _well(markup("{}", text), height)


def _well(content: Html, height: int) -> Html:
    return markup(
        '<div style="font-family:{};font-size:12.5px;line-height:20px;white-space:pre-wrap;overflow-wrap:anywhere;'
        'overflow-y:auto;height:{}px;background:{};border-radius:6px;padding:8px 12px" tabindex="0">{}</div>',
        Html(MONO.replace('"', "'")), height, c("sunk"), content,
    )  # fmt: skip


# ---------------------------------------------------------------- tokens of a dataset
@dataclass(frozen=True)
class TokenCounts:
    """How often each token occurs in the first `counted` tokens of the training split, and how long tokens are."""

    counted: int
    used: int
    top: tuple[tuple[str, int], ...]
    lengths: tuple[tuple[int, int], ...]


def count_tokens(dataset: Dataset) -> TokenCounts:
    """Count the training split's tokens.

    Raises:
        DataError: the dataset is damaged.
    """
    tokens, tokenizer = dataset.tokens("train")[:COUNTED_TOKENS], dataset.tokenizer
    counts = np.bincount(tokens, minlength=tokenizer.vocab_size)
    order = np.argsort(-counts, kind="stable")[:TOP]
    top = tuple((readable(tokenizer.token_bytes(int(t))), int(counts[t])) for t in order if counts[t])
    per_length = np.bincount(np.minimum(tokenizer.byte_lengths, LONGEST), weights=counts, minlength=LONGEST + 1)
    lengths = tuple((length, int(n)) for length, n in enumerate(per_length) if length and n)
    return TokenCounts(len(tokens), int(np.count_nonzero(counts)), top, lengths)


def frequent_html(counts: TokenCounts) -> Html:
    """The most frequent tokens with their share."""
    most = counts.top[0][1] if counts.top else 1
    rows = [
        (
            markup('<code style="font-size:12.5px">{}</code>', visible(piece)),
            bar(n / most),
            number(n),
            percent(n / counts.counted),
        )
        for piece, n in counts.top
    ]
    return table_html(rows, "84px minmax(30px,1fr) 70px 54px", ("token", "", "times", "share"), pad=2, align="llrr")


def lengths_html(counts: TokenCounts) -> Html:
    """How many bytes tokens have."""
    most = max((n for _, n in counts.lengths), default=1)
    rows = [
        (f"{length} and more" if length == LONGEST else number(length), bar(n / most), percent(n / counts.counted))
        for length, n in counts.lengths
    ]
    return table_html(rows, "84px minmax(30px,1fr) 54px", ("bytes", "", "share"), pad=2, align="llr")


def datasets_html(datasets: Sequence[Dataset], names: Sequence[str]) -> Html:
    """The prepared datasets, one a line."""
    kinds = {"bpe": "BPE", "char": "Characters", "byte": "Bytes", "gpt2": "GPT-2", "hf": "Imported"}
    rows = [
        (
            name, kinds.get(d.tokenizer_kind, d.tokenizer_kind), number(d.vocab_size), number(d.train_tokens),
            number(d.val_tokens),
            number((d.train_bytes + d.val_bytes) / max(1, d.train_tokens + d.val_tokens), 2),
            markup('<code style="font-size:12px" title="{}">{}</code>', d.fingerprint, d.fingerprint[:8]),
        )
        for d, name in zip(datasets, names, strict=True)
    ]  # fmt: skip
    header = ("text", "tokenizer", "vocabulary", "train tokens", "val tokens", "bytes a token", "fingerprint")
    columns = "minmax(60px,1fr) 84px 78px 96px 84px 88px 84px"
    return table_html(rows, columns, header, align="llrrrrr")


__all__ = [
    "LOOK_CHARACTERS", "TokenCounts", "count_tokens", "datasets_html", "frequent_html", "lengths_html", "pieces",
    "text_html", "tokens_html", "visible",
]  # fmt: skip
