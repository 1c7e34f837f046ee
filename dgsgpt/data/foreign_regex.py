"""Regular expressions in other people's tokenizers: which are safe to run, and where each surely splits a text.

A tokenizer.json carries its splitting expressions, and the engine that runs them backtracks: `(a+)+b` needs time
exponential in the length of a run of a's. To try hostile strings in a child process would only find what the tried
strings provoke, so the form of the expression is judged instead: nothing that varies in length may stand in a group
that is itself repeated without bound. That leaves polynomial time per match, and the engine gives up a match after
ten million steps of its own accord.
"""

from __future__ import annotations

import re
from typing import Any

from dgsgpt.data.bpe import CUTS, SPLITS

_MAX_LENGTH = 4096
_MAX_COUNT = 1000
_SMALL = 16  # a fixed count up to here may stand in a repeated group, as in a run of whole thousands
_UNBOUNDED = 1 << 30
_MAX_DEPTH = 32
_COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")
_GROUP_START = re.compile(r"\?(?:[imsx-]*:|[=!>]|<[=!]|[imsx-]+\))?")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
DIGIT = r"\p{N}"
THREE_DIGITS = "[0-9][0-9][0-9]"
DIGITS = r"\p{N}+"
PUNCTUATION = r"[\p{P}\$\+<=>\^~\|]+"

_ONLY_OF_VISIBLE = {DIGIT, THREE_DIGITS, DIGITS, PUNCTUATION}
# Llama 3's and Qwen's treat the ends of lines as ours does, which is made after the same model.
_CUTS = {SPLITS[name]: CUTS[name] for name in SPLITS}
_CUTS |= {GPT2: CUTS["gpt2"], LLAMA3: CUTS["gpt4-64"], QWEN2: CUTS["gpt4-64"]}


def cut_of(splits: list[str]) -> re.Pattern[str] | None:
    """Where a text may be cut if these expressions split it one after the other; None where that is not certain."""
    cuts = {_CUTS[s] for s in splits if s in _CUTS}
    certain = len(cuts) == 1 and all(s in _CUTS or s in _ONLY_OF_VISIBLE for s in splits)
    return cuts.pop() if certain else None


def check_expressions(value: Any, depth: int = 0) -> None:
    """Judge every `{"Regex": …}` in a description.

    Raises:
        ValueError: an expression may take for ever, or the description is nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"its description is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        expression = value.get("Regex")
        if isinstance(expression, str):
            _check(expression)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_expressions(inner, depth + 1)


def _check(expression: str) -> None:
    shown = expression if len(expression) <= 60 else expression[:57] + "…"
    if len(expression) > _MAX_LENGTH:
        raise ValueError(f"its expression {shown!r} is longer than {_MAX_LENGTH} characters")
    problem = _Scan(expression).problem()
    if problem:
        raise ValueError(f"its expression {shown!r} may take for ever ({problem})")


class _Scan:
    """One pass over an expression. For each open group: whether what it holds can vary in length or kind."""

    def __init__(self, expression: str) -> None:
        self._text = expression
        self._at = 0
        self._open: list[bool] = [False]
        # Of what a quantifier here would repeat: whether it can vary, and whether it is a group.
        self._closed_varies = self._of_group = False

    def problem(self) -> str | None:
        """What is wrong with the expression; None if nothing."""
        while self._at < len(self._text):
            problem = self._step()
            if problem:
                return problem
        return None

    def _step(self) -> str | None:
        character = self._text[self._at]
        if character == "\\":
            return self._escape()
        if character == "[":
            self._skip_class()
        elif character == "(":
            return self._group()
        elif character == ")":
            self._closed_varies = self._open.pop() if len(self._open) > 1 else False
            self._open[-1] |= self._closed_varies and len(self._open) > 1
            self._of_group = True
            self._at += 1
            return None
        elif character in "*+?{":
            return self._quantifier(character)
        elif character == "|":
            self._open[-1] |= len(self._open) > 1
            self._at += 1
        else:
            self._at += 1
        self._closed_varies = self._of_group = False
        return None

    def _escape(self) -> str | None:
        following = self._text[self._at + 1 : self._at + 2]
        if following in set("123456789kg"):
            return "it refers back to a group"
        self._at += 2
        self._closed_varies = self._of_group = False
        return None

    def _skip_class(self) -> None:
        depth = 0
        while self._at < len(self._text):
            character = self._text[self._at]
            depth += (character == "[") - (character == "]")
            self._at += 2 if character == "\\" else 1
            if depth == 0:
                return

    def _group(self) -> str | None:
        self._at += 1
        if self._text.startswith("?", self._at):
            start = _GROUP_START.match(self._text, self._at)
            if start is None or start.end() == self._at + 1:
                return "it uses a kind of group that is not known here"
            self._at = start.end()
            if start.group().endswith(")"):  # (?i) holds nothing
                self._closed_varies = self._of_group = False
                return None
        self._open.append(False)
        self._closed_varies = self._of_group = False
        return None

    def _quantifier(self, character: str) -> str | None:
        least, most, length = (0 if character in "*?" else 1), (1 if character == "?" else _UNBOUNDED), 1
        if character == "{":
            count = _COUNT.match(self._text, self._at)
            if count is None:  # a brace that is only itself, or of a class such as \p{L}
                self._at += 1
                return None
            least, length = int(count[1] or 0), len(count.group())
            most = least if not count[2] else int(count[3]) if count[3] else _UNBOUNDED
            if max(least, most % _UNBOUNDED) > _MAX_COUNT:
                return f"it repeats more than {_MAX_COUNT} times"
        if self._closed_varies and most > 1:
            return "what it repeats can vary"
        fixed = least == most <= _SMALL and not self._of_group
        self._open[-1] |= not fixed and len(self._open) > 1
        self._at += length
        # A second sign makes the first lazy or possessive, which changes no bound; after a count, + repeats the whole.
        if self._text[self._at : self._at + 1] in ({"?"} if character == "{" else {"?", "+"}):
            self._at += 1
        self._closed_varies, self._of_group = True, False
        return None
