"""Markup that is safe by type: plain `str` is text and is escaped wherever it lands, only `Html` is markup."""

from __future__ import annotations

import html
from collections.abc import Iterable


class Html(str):
    """Markup that is safe to show; made by the functions of this module and of `atoms` only."""

    __slots__ = ()


def esc(text: object) -> Html:
    """Text as markup: escaped, unless it is markup already."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def markup(template: str, /, *args: object, **fields: object) -> Html:
    """Fill a trusted template as `str.format` does, with every value escaped unless it is `Html`."""
    return Html(template.format(*map(esc, args), **{name: esc(value) for name, value in fields.items()}))


def join(parts: Iterable[object], separator: object = "") -> Html:
    """Several pieces as one, each escaped unless it is `Html`."""
    return Html(str(esc(separator)).join(esc(part) for part in parts))
