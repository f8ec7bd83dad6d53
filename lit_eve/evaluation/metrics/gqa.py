"""GQA: questions that are programs over scene graphs (Hudson and Manning 2019, arXiv 1902.09506)."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, mean_by

NOT_A_STEP = ("exist", "query: name", "choose name")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class GQAReference(NamedTuple):
    """A question, its answer, and what it is broken down by: structural and semantic type, global group, reasoning steps."""

    question: str
    answer: str
    structural: str
    semantic: str
    group: str | None
    steps: int
    is_balanced: bool = True


class GQA(BenchmarkMetric):
    """Share of the balanced questions whose answer is right word for word, in percent.

    ``accuracy``, the reported one; ``binary`` (yes/no, choices, comparisons) and ``open`` (structural type query); by
    ``structural/...``, ``semantic/...``, ``steps/...`` and ``words/...`` of the question. ``distribution``: how far the answers
    within the global groups are distributed otherwise than the right ones (chi-square over 100; lower is better).

    Questions without an answer are left out; the official script stops there.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve``: the official eval.py over answers as EVE converts them: full stops at the end are cut, all is in lower
            case. ``lmms_eval``: lower case and no punctuation on either side, unbalanced questions too.
    """

    headline = "accuracy"
    width = 2  # right or not; the place of the answer among those of its group, from 1, or 0

    def __init__(
        self,
        references: Mapping[Hashable, GQAReference],
        rules: Literal["eve", "lmms_eval"] = "eve",
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules
        rows: Sequence[GQAReference] = list(self.references.values())
        groups: dict[str, dict[str, int]] = {}
        for row in rows:
            if self._is_scored(row) and row.group is not None:
                answers = groups.setdefault(row.group, {})
                answers.setdefault(row.answer, len(answers) + 1)
        self._groups = groups

    def rate(self, reference: GQAReference, answer: str) -> tuple[float, float]:
        """Whether it is right, and its place among the right answers of the question's group."""
        if self.rules == "lmms_eval":
            found, wanted = (text.strip().lower().translate(_NO_PUNCTUATION) for text in (answer, reference.answer))
        else:
            found, wanted = converted(answer), reference.answer
        return float(found == wanted), float(self._groups.get(reference.group, {}).get(found, 0))

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """Accuracies and the distance of the distributions."""
        rows: Sequence[GQAReference] = list(self.references.values())
        chosen = answered & values.new_tensor([self._is_scored(row) for row in rows]).bool()
        right = 100 * values[:, 0]
        kinds = mean_by(["open" if row.structural == "query" else "binary" for row in rows], right, chosen)
        scores = {"accuracy": mean(right, chosen), **{kind: kinds[kind] for kind in ("binary", "open") if kind in kinds}}
        scores["distribution"] = self._distance(values[:, 1].long().tolist(), chosen.tolist())
        for name, categories in (
            ("structural", [row.structural for row in rows]),
            ("semantic", [row.semantic for row in rows]),
            ("steps", [row.steps for row in rows]),
            ("words", [len(row.question.split()) for row in rows]),
        ):
            scores |= {f"{name}/{category}": score for category, score in mean_by(categories, right, chosen).items()}
        return scores

    def _is_scored(self, row: GQAReference) -> bool:
        return row.is_balanced or self.rules == "lmms_eval"

    def _distance(self, places: Sequence[int], chosen: Sequence[bool]) -> float:
        """Chi-square of the answers that were given against the right ones, of each group, weighted by its size."""
        rows: Sequence[GQAReference] = list(self.references.values())
        wanted: dict[str, Counter[int]] = {group: Counter() for group in self._groups}
        given: dict[str, Counter[int]] = {group: Counter() for group in self._groups}
        for row, place, counts in zip(rows, places, chosen, strict=True):
            if counts and row.group is not None:
                wanted[row.group][self._groups[row.group][row.answer]] += 1
                given[row.group][place] += 1
        total = sum(counter.total() for counter in wanted.values())
        if not total:
            return 0.0
        distance = 0.0
        for group, counter in wanted.items():
            chi_square = sum((given[group][place] - count) ** 2 / count for place, count in counter.items())
            distance += chi_square * counter.total() / total
        return distance / 100


def converted(answer: str) -> str:
    """An answer as EVE's convert_gqa_for_eval.py writes it."""
    return answer.rstrip(".").lower()


def reasoning_steps(program: Sequence[Mapping[str, Any]]) -> int:
    """How many operations of a question's program count as steps of reasoning."""
    steps = (f"{step['operation']}: {step['argument']}" for step in program)
    return sum(not any(text in step for text in NOT_A_STEP) for step in steps)
