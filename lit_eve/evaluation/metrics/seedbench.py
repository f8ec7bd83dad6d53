"""SEED-Bench: multiple choice in twelve dimensions, nine of them on images (Li et al. 2023, arXiv 2307.16125)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, mean_by

Rules: TypeAlias = Literal["eve", "eve_tolerant", "lmms_eval"]


class SEEDBenchReference(NamedTuple):
    """The right letter, the dimension, and whether the question is about an image (else a video)."""

    answer: str
    dimension: str
    is_image: bool = True


class SEEDBench(BenchmarkMetric):
    """Accuracy in percent: ``image``, the reported one; ``video`` and ``all`` where there are videos; ``dimension/...``.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve``: the answer is the letter and nothing else (eve/eval/eval_seed.py). ``eve_tolerant``: it begins with the
            letter (the same script with ``-t``, which stops at an empty answer; here that is wrong). ``lmms_eval``: it begins
            with the letter, in any casing and after blanks. A question without an answer is wrong, but for ``lmms_eval``, which
            leaves it out.
    """

    headline = "image"

    def __init__(self, references: Mapping[Hashable, SEEDBenchReference], rules: Rules = "eve", **kwargs: Any) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: SEEDBenchReference, answer: str) -> float:
        """1 if it is right."""
        if self.rules == "lmms_eval":
            return float(answer.strip()[:1].lower() == reference.answer.lower())
        return float((answer[:1] if self.rules == "eve_tolerant" else answer) == reference.answer)

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """Accuracies over images, videos, all, and of each dimension."""
        rows: list[SEEDBenchReference] = list(self.references.values())
        right = 100 * values[:, 0]
        counted = answered if self.rules == "lmms_eval" else torch.ones_like(answered)
        is_image = torch.tensor([row.is_image for row in rows])
        scores = {"image": mean(right, counted & is_image)}
        if not is_image.all():
            scores |= {"video": mean(right, counted & ~is_image), "all": mean(right, counted)}
        by = mean_by([row.dimension for row in rows], right, counted)
        return scores | {f"dimension/{name}": score for name, score in by.items()}
