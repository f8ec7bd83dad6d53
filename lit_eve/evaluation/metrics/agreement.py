"""What VQAv2, VizWiz and TextVQA share: an answer is as right as people agree with it (Antol et al. 2015, arXiv 1505.00468)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, mean_by

ENOUGH = 3  # people who must agree


def agreement(answer: str, references: Sequence[str], leave_one_out: bool = True) -> float:
    """How far people agree with an answer, in percent: three are enough.

    Args:
        answer: normalised, as the references are.
        references: what people answered, usually ten.
        leave_one_out: the mean over the groups that lack one of the people; else the score of the whole group.
    """
    people, agreeing = len(references), list(references).count(answer)
    if not leave_one_out:
        return 100 * min(agreeing / ENOUGH, 1)
    without_agreeing, without_other = min((agreeing - 1) / ENOUGH, 1), min(agreeing / ENOUGH, 1)
    return 100 * (agreeing * without_agreeing + (people - agreeing) * without_other) / people


class AgreementMetric(BenchmarkMetric):
    """Mean agreement over all questions; a question without an answer counts as one with an empty answer.

    Attributes:
        categories: fields of the references by which the scores are broken down.
    """

    categories: ClassVar[tuple[str, ...]] = ()

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """``overall`` and ``CATEGORY/...``, in percent."""
        references = list(self.references.values())
        scores = values[:, 0].clone()
        for place in (~answered).nonzero().flatten().tolist():
            scores[place] = self.rate(references[place], "")
        result = {self.headline: mean(scores)}
        for name in self.categories:
            by = mean_by([getattr(reference, name) for reference in references], scores)
            result |= {f"{name}/{category}": score for category, score in by.items()}
        return result
