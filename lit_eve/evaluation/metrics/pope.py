"""POPE, object hallucination: are yes/no questions about objects answered right (Li et al. 2023, arXiv 2305.10355)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, Parts, added, mean

YES, NO, OTHER = 1.0, 0.0, -1.0


class POPEReference(NamedTuple):
    """The split that a question belongs to (random, popular, adversarial), and the right answer: yes or no."""

    split: str
    label: str


class POPE(BenchmarkMetric):
    """F1 of "yes" in each split, and the mean over the splits, which EVE's paper reports.

    All scores are percentages: ``f1``, and for each split ``accuracy/...``, ``precision/...``, ``recall/...``, ``f1/...`` and
    ``yes_ratio/...``. What would be divided by zero is 0; the official script stops there.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``official`` (eve/eval/eval_pope.py, the same as POPE's own): an answer is a no if ``No``, ``no`` or ``not`` is
            among the words before its first full stop; everything else is a yes. ``lmms_eval``: an answer is yes or no in any
            casing, or neither, which is wrong and left out of precision and recall; its yes ratio is that of the labels.
    """

    headline = "f1"

    def __init__(
        self,
        references: Mapping[Hashable, POPEReference],
        rules: Literal["official", "lmms_eval"] = "official",
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: POPEReference, answer: str) -> float:
        """`YES`, `NO` or `OTHER`."""
        if self.rules == "lmms_eval":
            return {"yes": YES, "no": NO}.get(answer.strip().lower(), OTHER)
        words = answer.split(".", 1)[0].replace(",", "").split(" ")
        return NO if {"No", "no", "not"} & set(words) else YES

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """Scores of each split, over its answered questions, and their mean F1."""
        references: list[POPEReference] = list(self.references.values())
        yes, no = values[:, 0] == YES, values[:, 0] == NO
        label = values.new_tensor([reference.label != "no" for reference in references]).bool()
        right = (yes & label) | (no & ~label)
        scores: dict[str, float] = {}
        f1 = []
        for split in dict.fromkeys(reference.split for reference in references):
            chosen = answered & values.new_tensor([reference.split == split for reference in references]).bool()
            hits, yeses, labels = (float((x & chosen).sum()) for x in (yes & label, yes, label & (yes | no)))
            precision, recall = hits / max(yeses, 1), hits / max(labels, 1)
            f1.append(2 * precision * recall / ((precision + recall) or 1))
            scores |= {
                f"f1/{split}": 100 * f1[-1],
                f"accuracy/{split}": 100 * mean(right.double(), chosen),
                f"precision/{split}": 100 * precision,
                f"recall/{split}": 100 * recall,
                f"yes_ratio/{split}": 100 * mean((label if self.rules == "lmms_eval" else yes).double(), chosen),
            }
        return {"f1": 100 * added(f1) / max(len(f1), 1), **scores}

    def parts(self) -> Parts:
        """Hits, yeses and labels that are yes, of each split."""
        values, answered = self._rated()
        references: list[POPEReference] = list(self.references.values())
        yes, no = values[:, 0] == YES, values[:, 0] == NO
        label = values.new_tensor([reference.label != "no" for reference in references]).bool()
        counts = torch.stack([yes & label, yes, label & (yes | no)], dim=1) & answered.unsqueeze(1)
        splits = list(dict.fromkeys(reference.split for reference in references))
        columns = np.zeros((len(references), len(splits), 3))
        for place, reference in enumerate(references):
            columns[place, splits.index(reference.split)] = counts[place].numpy()

        def mean_f1(sums: np.ndarray) -> np.ndarray:
            hits, yeses, labels = np.moveaxis(sums.reshape(len(sums), -1, 3), 2, 0)
            return 100 * (2 * hits / np.maximum(yeses + labels, 1)).mean(1)

        return Parts(columns.reshape(len(references), -1), mean_f1)
