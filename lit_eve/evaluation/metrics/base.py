"""What the metrics of all benchmarks share: a place for every question, and states that sum over ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_eve.errors import LitEveError


class Parts(NamedTuple):
    """The headline score as a function of sums over questions, so that it can be had of other questions too.

    Args:
        columns: (questions, k) float64: what each question adds to the sums; 0 where it does not count.
        combine: (resamples, k) sums -> (resamples,) scores.
        best: the highest score.
        strata: of each question, a group whose size stays; None: there is one.
    """

    columns: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]
    best: float = 100.0
    strata: Sequence[Hashable] | None = None


class BenchmarkMetric(Metric, ABC):
    """Scores answers to the questions of a benchmark, as its official scorer does.

    Every question has a place of its own in the states, and the states are sums. So ranks may share the questions in any way, a
    question that several of them answered (samplers fill up the last batch) still counts once, and the official aggregation
    runs once, at the end, over all questions in their order.

    Args:
        references: what a scorer must know of each question, by the question's id, in the official order.

    Attributes:
        headline: the key of ``compute()`` that is reported as the benchmark's score.
        width: how many numbers :meth:`rate` gives for an answer.
    """

    full_state_update = False
    higher_is_better = True
    headline: ClassVar[str] = "overall"
    width: ClassVar[int] = 1
    values: Tensor  # (questions, width) float64: sums over the answers to a question
    counts: Tensor  # (questions,) int64: how often it was answered

    def __init__(self, references: Mapping[Hashable, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.references = dict(references)
        self._places = {id: place for place, id in enumerate(self.references)}
        size = len(self.references)
        self.add_state("values", torch.zeros(size, self.width, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def rate(self, reference: Any, answer: str) -> float | Sequence[float]:
        """What the official scorer makes of one answer, as ``width`` numbers."""

    @abstractmethod
    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """The official scores.

        Args:
            values: (questions, width) float64, on the CPU, in the order of ``references``; 0 where there is no answer.
            answered: (questions,) bool.

        Returns:
            scores by name: ``headline``, and those of categories as ``"kind of category/category"``.
        """

    def update(self, ids: Sequence[Hashable], answers: Sequence[str]) -> None:
        """Rate answers to the questions of these ids.

        Raises:
            LitEveError: an id that no question has.
        """
        if unknown := [id for id in ids if id not in self._places]:
            raise LitEveError(f"{type(self).__name__}: there is no question {unknown[0]!r}")
        rated = [self.rate(self.references[id], answer) for id, answer in zip(ids, answers, strict=True)]
        if not rated:
            return
        places = torch.tensor([self._places[id] for id in ids], device=self.values.device)
        values = torch.tensor(rated, dtype=torch.double, device=self.values.device).view(len(rated), self.width)
        self.values.index_add_(0, places, values)
        self.counts.index_add_(0, places, torch.ones_like(places))

    def compute(self) -> dict[str, float]:
        """The official scores over the answers of all ranks, in the benchmark's unit."""
        values, answered = self._rated()
        return self.summarize(values, answered)

    def shares(self, values: Tensor, answered: Tensor) -> Tensor | None:
        """(questions,) float64 from 0 to 1, nan where a question does not count: the headline is their mean in percent.

        None: it is no mean, or a subclass does not tell; then there is no interval.
        """
        return None

    def parts(self) -> Parts | None:
        """The headline score in parts; by default the mean of :meth:`shares`."""
        shares = self.shares(*self._rated())
        if shares is None:
            return None
        shares = shares.numpy()
        counted = ~np.isnan(shares)
        columns = np.stack([np.where(counted, shares, 0.0), counted.astype(float)], axis=1)
        return Parts(columns, lambda sums: 100 * sums[:, 0] / np.maximum(sums[:, 1], 1))

    @staticmethod
    def rounded(score: float, digits: int) -> float:
        """A score as the official tool prints it: here, as Python's format does. Tools differ where a score ends in a 5."""
        return round(score, digits)

    def by_question(self) -> dict[Hashable, float | list[float]]:
        """What :meth:`rate` made of each question that was answered; of all ranks only inside ``sync_context``."""
        values, answered = self._rated()
        rows = (values.squeeze(1) if self.width == 1 else values).tolist()
        return {id: row for id, row, known in zip(self.references, rows, answered.tolist(), strict=True) if known}

    def _rated(self) -> tuple[Tensor, Tensor]:
        counts = self.counts.cpu()
        return self.values.cpu() / counts.clamp(min=1).unsqueeze(1), counts > 0


def where(counted: Tensor, shares: Tensor) -> Tensor:
    """(n,) shares as float64, nan where the (n,) bool is False."""
    return shares.double().where(counted, torch.nan)


def added(values: Iterable[float]) -> float:
    """Numbers added up one after the other, as the official tools do.

    ``sum()`` of Python 3.12 and newer corrects itself on the way, and torch and NumPy add in another order: the last bit
    differs, and with it a score whose rounding hangs on it.
    """
    return reduce(add, values, 0.0)


def average(values: Sequence[float]) -> float:
    """Mean of numbers; nan of none."""
    return added(values) / len(values) if values else float("nan")


def mean(values: Tensor, chosen: Tensor | None = None) -> float:
    """Mean of (n,) values, of the ``chosen`` (n,) bool ones if given; nan of none."""
    return average((values if chosen is None else values[chosen]).tolist())


def mean_by(categories: Sequence[Any], values: Tensor, chosen: Tensor | None = None) -> dict[Any, float]:
    """Mean of (n,) values in each category, in the order in which categories first occur; of the ``chosen`` ones only."""
    rows: dict[Any, list[float]] = {}
    for place, (category, value) in enumerate(zip(categories, values.tolist(), strict=True)):
        if chosen is None or chosen[place]:
            rows.setdefault(category, []).append(value)
    return {category: average(row) for category, row in rows.items()}
