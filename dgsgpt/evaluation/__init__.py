"""How well a model predicts a text, and how much better than another.

What needs torch is imported when it is asked for: kept results are listed without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgsgpt.evaluation.context import extended
    from dgsgpt.evaluation.perplexity import Evaluation, evaluate, evaluate_text
    from dgsgpt.evaluation.scores import Scores, score_text
    from dgsgpt.evaluation.texts import validation_text

_PLACES = {
    "extended": "context",
    "Evaluation": "perplexity",
    "evaluate": "perplexity",
    "evaluate_text": "perplexity",
    "Scores": "scores",
    "score_text": "scores",
    "validation_text": "texts",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


__all__ = ["Evaluation", "Scores", "evaluate", "evaluate_text", "extended", "score_text", "validation_text"]
