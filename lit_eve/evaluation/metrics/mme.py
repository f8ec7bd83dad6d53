"""MME: yes/no questions, two about every image, in fourteen tasks (Fu et al. 2023, arXiv 2306.13394)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
YES, NO, OTHER = 1.0, 0.0, -1.0
PREFIX = 4  # characters of an answer that are looked at


class MMEReference(NamedTuple):
    """The task, the image (both of its questions have the same, and no other image of the task), and whether yes is right."""

    task: str
    image: Hashable
    is_yes: bool


class MME(BenchmarkMetric):
    """Points: of a task 100 x accuracy + 100 x the share of images of which both answers are right.

    ``perception``, the sum over its ten tasks, at most 2000, is the reported one; ``cognition`` over four, where they are
    asked; ``score/TASK``, ``accuracy/TASK``, ``accuracy_plus/TASK`` (percent) and ``other/TASK``, how many answers are neither
    yes nor no. Questions without an answer are left out, images with only one answer out of ``accuracy_plus``.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``official``: the tool eval_tool.zip: yes or no must be among the first four characters of the line's last field,
            so that "not sure" and "know" are a no. ``lmms_eval``: outer blanks and full stops are passed over, and ``y`` and
            ``n`` are understood.
    """

    headline = "perception"

    def __init__(
        self,
        references: Mapping[Hashable, MMEReference],
        rules: Literal["official", "lmms_eval"] = "official",
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: MMEReference, answer: str) -> float:
        """`YES`, `NO` or `OTHER`."""
        answer = answer.lower()
        if self.rules == "lmms_eval":
            answer = answer.strip().replace(".", "")
            answer = {"y": "yes", "n": "no"}.get(answer, answer)
        return YES if "yes" in answer[:PREFIX] else NO if "no" in answer[:PREFIX] else OTHER

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """The totals, and the scores of each task."""
        rows: list[MMEReference] = list(self.references.values())
        found = values[:, 0]
        right = 100 * (found == torch.tensor([YES if row.is_yes else NO for row in rows])).double()
        scores: dict[str, float] = {}
        for task in dict.fromkeys(row.task for row in rows):
            chosen = answered & torch.tensor([row.task == task for row in rows])
            images: dict[Hashable, list[float]] = {}
            for place in chosen.nonzero().flatten().tolist():
                images.setdefault(rows[place].image, []).append(float(right[place]))
            both = [min(pair) for pair in images.values() if len(pair) > 1]
            accuracy, plus = mean(right, chosen), sum(both) / len(both) if both else float("nan")
            scores |= {f"score/{task}": accuracy + plus, f"accuracy/{task}": accuracy, f"accuracy_plus/{task}": plus}
            scores[f"other/{task}"] = int((chosen & (found == OTHER)).sum())
        totals = {
            name: sum(scores[f"score/{task}"] for task in tasks if f"score/{task}" in scores)
            for name, tasks in (("perception", PERCEPTION), ("cognition", COGNITION))
            if name == self.headline or any(f"score/{task}" in scores for task in tasks)
        }
        return totals | scores
