"""SEED-Bench: multiple choice about images and videos, in twelve dimensions (Li et al. 2023, arXiv 2307.16125)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, mean_by, where


class SEEDBenchReference(NamedTuple):
    """What is asked about (``Spatial Relation``), the letter of the right choice, and whether it is about an image."""

    dimension: str
    answer: str
    data_type: Literal["image", "video"] = "image"


class SEEDBench(BenchmarkMetric):
    """Accuracy in percent: ``image`` and ``dimension/...``; where there are questions about videos, ``video`` and ``all`` too.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve`` (scripts/convert_seed_for_submission.py): the answer must be the letter and nothing else.
            ``eve_tolerant`` (the script's option, which EVE does not use): it must begin with the letter. An empty answer, at
            which the script stops, is wrong. With both, a question without an answer counts as wrong.
            ``lmms_eval``: it must begin with the letter, in any casing, after blanks; over the questions with an answer.
    """

    headline = "image"

    def __init__(
        self,
        references: Mapping[Hashable, SEEDBenchReference],
        rules: Literal["eve", "eve_tolerant", "lmms_eval"] = "eve",
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: SEEDBenchReference, answer: str) -> float:
        """1 or 0."""
        if self.rules == "lmms_eval":
            answer = answer.strip().upper()
        return float((answer if self.rules == "eve" else answer[:1]) == reference.answer)

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """``image``, ``video`` and ``all``, then the dimensions."""
        references: list[SEEDBenchReference] = list(self.references.values())
        points = values[:, 0]
        counted = answered if self.rules == "lmms_eval" else torch.ones_like(answered)
        is_image = torch.tensor([reference.data_type == "image" for reference in references], dtype=torch.bool)
        scores = {"image": 100 * mean(points, counted & is_image)}
        if not is_image.all():
            scores |= {"video": 100 * mean(points, counted & ~is_image), "all": 100 * mean(points, counted)}
        dimensions = mean_by([reference.dimension for reference in references], points, counted)
        return scores | {f"dimension/{name}": 100 * score for name, score in dimensions.items()}

    def shares(self, values: Tensor, answered: Tensor) -> Tensor:
        """Of the questions about images; under lmms_eval those with an answer."""
        is_image = torch.tensor([reference.data_type == "image" for reference in self.references.values()], dtype=torch.bool)
        return where(is_image & answered if self.rules == "lmms_eval" else is_image, values[:, 0])
