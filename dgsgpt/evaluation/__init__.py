"""How well a model predicts a text, and how much better than another."""

from dgsgpt.evaluation.context import extended
from dgsgpt.evaluation.perplexity import Evaluation, evaluate, evaluate_text
from dgsgpt.evaluation.scores import Scores, score_text
from dgsgpt.evaluation.texts import validation_text

__all__ = ["Evaluation", "Scores", "evaluate", "evaluate_text", "extended", "score_text", "validation_text"]
