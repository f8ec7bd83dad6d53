"""What VQAv2, VizWiz and TextVQA share: an answer is as right as people agree with it (Antol et al. 2015, arXiv 1505.00468)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import ClassVar

import torch
from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, average

ENOUGH = 3  # people who must agree


def agreement(answer: str, references: Sequence[str], leave_one_out: bool = True) -> float:
    """How far people agree with an answer, from 0 to 1: three are enough.

    Args:
        answer: normalised, as the references are.
        references: what people answered, usually ten.
        leave_one_out: the mean over the groups that lack one of the people; else the score of the whole group.
    """
    agreeing = list(references).count(answer)
    others = (agreeing - (leave_one_out and reference == answer) for reference in references)  # who agree with each of them
    return average([min(count / ENOUGH, 1) for count in others])


class AgreementMetric(BenchmarkMetric):
    """Mean agreement over all questions; a question without an answer counts as one with an empty answer.

    Attributes:
        categories: fields of the references by which the scores are broken down.
    """

    categories: ClassVar[tuple[str, ...]] = ()

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """``overall`` and ``CATEGORY/...``, in percent."""
        references = list(self.references.values())
        shares = self._shares(values, answered)
        rows = {self.headline: shares}
        for name in self.categories:
            for reference, share in zip(references, shares, strict=True):
                rows.setdefault(f"{name}/{getattr(reference, name)}", []).append(share)
        return {name: 100 * average(row) for name, row in rows.items()}

    def shares(self, values: Tensor, answered: Tensor) -> Tensor:
        """An empty answer's where there is none."""
        return torch.tensor(self._shares(values, answered), dtype=torch.double)

    def _shares(self, values: Tensor, answered: Tensor) -> list[float]:
        shares = values[:, 0].tolist()
        for place, reference in enumerate(self.references.values()):
            if not answered[place]:
                shares[place] = self.rate(reference, "")
        return shares

    def by_question(self) -> dict[Hashable, float]:
        """Percent."""
        return {id: 100 * share for id, share in super().by_question().items()}

    @staticmethod
    def rounded(score: float, digits: int) -> float:
        """Half away from zero, as Python 2 does, for which the official scorers were written."""
        return float(Decimal(score).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))
