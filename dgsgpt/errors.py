"""The exceptions a user may meet; anything else is a bug and keeps its traceback.

A message is one line that names the file or field, the value, the rule and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping


class DgsgptError(Exception):
    """Base of every error that is the user's to mend. The command line exits with 2 on it."""


class ConfigError(DgsgptError):
    """A setting is unknown, mistyped or breaks a rule.

    `problems` maps a dotted setting (`model.n_head`) to its own message, for forms that show
    each message beside its field.
    """

    def __init__(self, message: str, problems: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.problems: dict[str, str] = dict(problems or {})


class DataError(DgsgptError):
    """A text, tokenizer or token file cannot be used."""


class RunError(DgsgptError):
    """A run does not exist, is in the wrong state, or its directory cannot be used."""


class CheckpointError(DgsgptError):
    """A checkpoint is missing, incomplete, damaged or does not match what it is opened with."""
