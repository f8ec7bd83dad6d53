"""What a trained model can do: answers to questions and tokens of captions, and metrics of both.

A benchmark is a list of queries for :func:`answer_all` and a torchmetric over the answers.
"""

from lit_eve.evaluation.captions import token_accuracy
from lit_eve.evaluation.generation import Query, answer_all
from lit_eve.evaluation.metrics import AnswerAccuracy, TokenAccuracy, normalize_answer

__all__ = ["AnswerAccuracy", "Query", "TokenAccuracy", "answer_all", "normalize_answer", "token_accuracy"]
