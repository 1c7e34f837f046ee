"""How well a model predicts a text."""

from dgsgpt.evaluation.context import extended
from dgsgpt.evaluation.perplexity import Evaluation, evaluate, evaluate_text
from dgsgpt.evaluation.texts import validation_text

__all__ = ["Evaluation", "evaluate", "evaluate_text", "extended", "validation_text"]
