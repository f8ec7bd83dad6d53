"""MM-Vet: how much a judge makes of free answers, by the capabilities that they need (Yu et al. 2023, arXiv 2308.02490)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.evaluation.metrics.base import BenchmarkMetric, added


class MMVetReference(NamedTuple):
    """A question, its right answer (parts joined by ``<AND>`` or ``<OR>``) and the capabilities that it needs (rec, ocr...)."""

    question: str
    answer: str
    capabilities: tuple[str, ...]


class MMVet(BenchmarkMetric):
    """Mean grade in percent: ``total``, that of questions with a capability (``capability/ocr``), and that of questions with
    exactly these capabilities (``integration/ocr_math``, in alphabetical order); means over the runs of the judge. ``std`` is
    the population standard deviation of ``total`` over the runs, ``run/1``... are the totals of each.

    It rates what a judge has said: one grade per run, from 0 to 1, joined by blanks ("0.5 0.4"). A question without grades
    counts as 0: mm-vet_evaluator.py divides by the number of all questions (and stops where an answer is missing).

    Args:
        references: see :class:`BenchmarkMetric`.
        runs: how often each answer was graded; the paper has 5, the official tool 1 by default.
    """

    headline = "total"

    def __init__(self, references: Mapping[Hashable, MMVetReference], runs: int = 1, **kwargs: Any) -> None:
        self.width = runs
        super().__init__(references, **kwargs)

    def rate(self, reference: MMVetReference, answer: str) -> list[float]:
        """One grade per run.

        Raises:
            LitEveError: this is something else; answers must go through ``Benchmark.judge`` first.
        """
        try:
            grades = [float(grade) for grade in answer.split()]
        except ValueError:
            grades = []
        if len(grades) != self.width:
            raise LitEveError(f"MM-Vet needs a judge: {answer[:40]!r} is not {self.width} grades")
        return grades

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """Scores over all questions; added, divided and averaged over the runs in the evaluator's order."""
        references: list[MMVetReference] = list(self.references.values())
        grades = values.tolist()
        total = _percent(grades)  # (runs,)
        scores = {"total": float(total.mean()), "std": float(total.std())}
        scores |= {f"run/{number}": run for number, run in enumerate(total.tolist(), 1)}
        rows: dict[str, list[list[float]]] = {}
        for name in dict.fromkeys(name for reference in references for name in reference.capabilities):
            rows[f"capability/{name}"] = [
                row for row, reference in zip(grades, references, strict=True) if name in reference.capabilities
            ]
        for row, reference in zip(grades, references, strict=True):
            rows.setdefault(f"integration/{'_'.join(sorted(set(reference.capabilities)))}", []).append(row)
        return scores | {name: float(_percent(group).mean()) for name, group in rows.items()}

    def shares(self, values: Tensor, answered: Tensor) -> Tensor:
        """The mean grade of the runs."""
        return values.mean(1)

    @staticmethod
    def rounded(score: float, digits: int) -> float:
        """The evaluator rounds NumPy's numbers, which is not always what Python makes of the same number (46.15)."""
        return float(np.round(score, digits))


def _percent(grades: list[list[float]]) -> np.ndarray:
    """(questions, runs) grades -> (runs,) float64."""
    return np.array([added(run) for run in zip(*grades, strict=True)]) / len(grades) * 100
