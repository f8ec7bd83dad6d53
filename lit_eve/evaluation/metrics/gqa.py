"""GQA: questions made from scene graphs, one right answer to each (Hudson and Manning 2019, arXiv 1902.09506)."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, mean_by, where

OPEN = "query"  # the structural type whose answers are open; those of all others are one of two
OTHER = -1.0  # an answer that is not right anywhere in its group
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class GQAReference(NamedTuple):
    """What the official script must know of a question.

    Args:
        answer: the right one.
        structural: verify, query, choose, logical or compare.
        semantic: attr, cat, global, obj or rel.
        steps: of reasoning.
        words: of the question.
        group: questions whose answers are comparable (``groups.global``); None: not in a group.
        balanced: whether it counts.
    """

    answer: str
    structural: str
    semantic: str
    steps: int
    words: int
    group: str | None
    balanced: bool = True


def gqa_prediction(answer: str) -> str:
    """An answer as EVE hands it in (scripts/convert_gqa_for_eval.py): lower case, no full stops at its end."""
    return answer.rstrip(".").lower()


class GQA(BenchmarkMetric):
    """Percent right: ``accuracy``, ``open``, ``binary``, ``structural/...``, ``semantic/...``, ``steps/...`` and ``words/...``.

    ``distribution`` is the chi-square of given against right answers within groups of questions, by a hundred; lower is
    better. Validity and plausibility need lists of choices, which testdev has none of. A question without an answer is
    wrong; the official script stops there.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve``: GQA's eval.py on what EVE hands in (:func:`gqa_prediction`): texts must be equal. ``lmms_eval``: texts
            must be equal in lower case, without punctuation; questions that are not balanced count too.
    """

    headline = "accuracy"
    width = 2

    def __init__(
        self,
        references: Mapping[Hashable, GQAReference],
        rules: Literal["eve", "lmms_eval"] = "eve",
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules
        self._answers: dict[str, dict[str, int]] = {}  # of each group, with their numbers
        for reference in self.references.values():
            if self._included(reference) and reference.group is not None:
                answers = self._answers.setdefault(reference.group, {})
                answers.setdefault(self._right(reference), len(answers))

    def rate(self, reference: GQAReference, answer: str) -> tuple[float, float]:
        """1 if it is right, else 0; and the number of the answer among the right ones of the group, or `OTHER`."""
        given = _plain(answer.strip()) if self.rules == "lmms_eval" else gqa_prediction(answer)
        answers = self._answers.get(reference.group, {}) if reference.group is not None else {}
        return float(given == self._right(reference)), float(answers.get(given, OTHER))

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """Scores over all questions that count."""
        references: list[GQAReference] = list(self.references.values())
        chosen = values.new_tensor([self._included(reference) for reference in references]).bool()
        right = values[:, 0]
        scores = {"accuracy": 100 * mean(right, chosen)}
        kinds = mean_by(["open" if reference.structural == OPEN else "binary" for reference in references], right, chosen)
        scores |= {kind: 100 * kinds.get(kind, float("nan")) for kind in ("open", "binary")}
        scores["distribution"] = self._distribution(values[:, 1], chosen & answered)
        for name in ("structural", "semantic", "steps", "words"):
            by = mean_by([getattr(reference, name) for reference in references], right, chosen)
            scores |= {f"{name}/{category}": 100 * score for category, score in by.items()}
        return scores

    def shares(self, values: Tensor, answered: Tensor) -> Tensor:
        """Of the questions that count."""
        return where(values.new_tensor([self._included(each) for each in self.references.values()]).bool(), values[:, 0])

    def _distribution(self, numbers: Tensor, given: Tensor) -> float:
        """Chi-square of each group, weighted by its size; ``numbers`` (n,) of the answers that were ``given`` (n,) bool."""
        right: dict[str, Counter[int]] = {group: Counter() for group in self._answers}
        predicted: dict[str, Counter[int]] = {group: Counter() for group in self._answers}
        for reference, number, known in zip(self.references.values(), numbers.tolist(), given.tolist(), strict=True):
            if reference.group is None or not self._included(reference):
                continue
            right[reference.group][self._answers[reference.group][self._right(reference)]] += 1
            if known:
                predicted[reference.group][int(number)] += 1
        total = chi_square = 0.0
        for group, expected in right.items():
            size = expected.total()
            chi_square += size * sum((predicted[group][number] - count) ** 2 / count for number, count in expected.items())
            total += size
        return chi_square / total / 100 if total else float("nan")

    def _right(self, reference: GQAReference) -> str:
        return _plain(reference.answer) if self.rules == "lmms_eval" else reference.answer

    def _included(self, reference: GQAReference) -> bool:
        return reference.balanced or self.rules == "lmms_eval"


def _plain(text: str) -> str:
    return text.lower().translate(_NO_PUNCTUATION)
