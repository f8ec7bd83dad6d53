"""MME: two yes/no questions an image, in ten tasks of perception and four of cognition (Fu et al. 2023, arXiv 2306.13394)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, Parts, added

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
YES, NO, OTHER = 1.0, 0.0, -1.0


class MMEReference(NamedTuple):
    """The task (``existence``), the image, which two questions of the task share, and the right answer: yes or no."""

    task: str
    image: str
    label: str


class MME(BenchmarkMetric):
    """Points: ``perception``, 2,000 at most, the sum of its tasks' ``score/...``; ``cognition``, 800, if its tasks are there.

    A task's score is the percentage of right answers, ``accuracy/...``, and that of images with both answers right,
    ``accuracy_plus/...``. ``precision/...`` and ``recall/...`` of "yes" are over the answers that are yes or no;
    ``other/...`` is the percentage of those that are neither, which are wrong.

    An image with one answer, or one question, is left out, for both scorers stop there; so is a task without a whole image. A
    sum over fewer tasks is not comparable with others; over none it is nan.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve_tool`` (MME's eval_tool/calculation.py, which EVE uses): an answer is yes or no if the word is among its
            first four characters, yes before no: ``not sure`` is no, ``eyes`` is yes, and ``  yes``, after two blanks,
            neither. The tool reads the end of the line too; that changes nothing.
            ``lmms_eval``: outer blanks and full stops are taken away first, and ``y`` and ``n`` are known.
    """

    headline = "perception"

    def __init__(
        self,
        references: Mapping[Hashable, MMEReference],
        rules: Literal["eve_tool", "lmms_eval"] = "eve_tool",
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: MMEReference, answer: str) -> float:
        """`YES`, `NO` or `OTHER`."""
        text = answer.lower()
        if self.rules == "lmms_eval":
            text = text.strip().replace(".", "")
            text = {"y": "yes", "n": "no"}.get(text, text)
        start = text[:4]
        return YES if "yes" in start else NO if "no" in start else OTHER

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """The sums, then each task."""
        references: list[MMEReference] = list(self.references.values())
        labels = torch.tensor([YES if reference.label == "yes" else NO for reference in references], dtype=torch.double)
        pairs = self._pairs(references, answered)
        scores: dict[str, float] = {}
        for task in (*PERCEPTION, *COGNITION):
            if task in pairs:
                rows = torch.tensor(pairs[task])  # (images, 2)
                scores |= {f"{name}/{task}": score for name, score in _task_scores(values[rows, 0], labels[rows]).items()}
        sums = {"perception": [scores[f"score/{task}"] for task in PERCEPTION if task in pairs]}
        sums["cognition"] = [scores[f"score/{task}"] for task in COGNITION if task in pairs]
        total = {name: added(points) for name, points in sums.items() if points}
        return {"perception": float("nan"), **total, **scores}

    def parts(self) -> Parts:
        """Right answers, images with both right, and images, of each task of perception."""
        values, answered = self._rated()
        references: list[MMEReference] = list(self.references.values())
        pairs = self._pairs(references, answered)
        tasks = [task for task in PERCEPTION if task in pairs]
        columns = np.zeros((len(references), len(tasks), 3))
        for number, task in enumerate(tasks):
            for first, second in pairs[task]:
                right = [values[place, 0] == (YES if references[place].label == "yes" else NO) for place in (first, second)]
                columns[first, number] = (sum(map(float, right)), float(all(right)), 1)

        def perception(sums: np.ndarray) -> np.ndarray:
            right, both, images = np.moveaxis(sums.reshape(len(sums), -1, 3), 2, 0)
            return (100 * right / (2 * images) + 100 * both / images).sum(1)

        strata = [reference.task for reference in references]
        return Parts(columns.reshape(len(references), -1), perception, 200.0 * len(tasks), strata)

    def _pairs(self, references: list[MMEReference], answered: Tensor) -> dict[str, list[list[int]]]:
        """Of each task, the places of the two questions of each image."""
        images: dict[tuple[str, str], list[int]] = {}
        for place, (reference, known) in enumerate(zip(references, answered.tolist(), strict=True)):
            if known:
                images.setdefault((reference.task, reference.image), []).append(place)
        pairs: dict[str, list[list[int]]] = {}
        for (task, _), places in images.items():
            if len(places) == 2:
                pairs.setdefault(task, []).append(places)
        return pairs


def _task_scores(parsed: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of one task; both tensors are (images, 2) float64."""
    right = parsed == labels
    accuracy, both = 100 * float(right.double().mean()), 100 * float(right.all(dim=1).double().mean())
    hits = float((right & (labels == YES)).sum())
    yeses, wanted = float((parsed == YES).sum()), float(((labels == YES) & (parsed != OTHER)).sum())
    return {
        "score": accuracy + both,
        "accuracy": accuracy,
        "accuracy_plus": both,
        "precision": 100 * hits / max(yeses, 1),
        "recall": 100 * hits / max(wanted, 1),
        "other": 100 * float((parsed == OTHER).double().mean()),
    }
