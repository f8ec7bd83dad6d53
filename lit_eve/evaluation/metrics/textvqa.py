"""TextVQA: questions about text in images, ten answers of people to each (Singh et al. 2019, arXiv 1904.08920)."""

from __future__ import annotations

from torch import Tensor

from lit_eve.evaluation.metrics.agreement import AgreementMetric, agreement
from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, where
from lit_eve.evaluation.metrics.normalization import evalai_answer


class TextVQA(AgreementMetric):
    """Accuracy in percent, ``overall``: EvalAI's processor on both sides (eve/eval/m4c_evaluator.py; lmms-eval scores alike).

    As in the official script, questions without an answer are left out of the mean.

    Args:
        references: what ten people answered, by the question's id.
    """

    def rate(self, reference: tuple[str, ...], answer: str) -> float:
        """From 0 to 1."""
        return agreement(evalai_answer(answer), [evalai_answer(text) for text in reference])

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """``overall``."""
        return {"overall": 100 * mean(values[:, 0], answered)}

    def shares(self, values: Tensor, answered: Tensor) -> Tensor:
        """Of the questions with an answer."""
        return where(answered, values[:, 0])

    rounded = staticmethod(BenchmarkMetric.rounded)
