"""Questions of one's own: yes or no, multiple choice, or a short text, each right or wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from lit_eve.evaluation.metrics.accuracy import normalize_answer
from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, mean_by, where
from lit_eve.evaluation.metrics.mmbench import find_letter

YES, NO, OTHER = 1.0, 0.0, -1.0
_FIRST_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class OwnReference:
    """What is right.

    Args:
        kind: ``yes_no``, ``choice`` or ``text``.
        answers: right ones; of a choice, the letter.
        options: of a choice, by letter.
        category: what the scores are broken down by; None: nothing.
    """

    kind: Literal["yes_no", "choice", "text"]
    answers: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    category: str | None = None


class OwnMetric(BenchmarkMetric):
    """Percent right: ``accuracy``, ``accuracy/yes_no`` (and ``choice``, ``text``) and ``category/...``.

    - ``yes_no``: the answer must begin with the word, in any casing. ``yes_ratio`` is the share of answers that say yes, and
      ``f1`` that of "yes", as in POPE: with many more of one answer than of the other, accuracy alone says little.
    - ``choice``: the letter, or the text of just one option, as MMBench's rules find them.
    - ``text``: equal to one of the right answers after :func:`normalize_answer`.

    A question without an answer is in no score.
    """

    headline = "accuracy"
    width = 2

    def rate(self, reference: OwnReference, answer: str) -> tuple[float, float]:
        """1 if it is right, else 0; and `YES`, `NO` or `OTHER`."""
        if reference.kind == "choice":
            return float(find_letter(answer, reference.options) == reference.answers[0]), OTHER
        if reference.kind == "text":
            return float(normalize_answer(answer) in map(normalize_answer, reference.answers)), OTHER
        found = _FIRST_WORD.match(answer)
        said = found[1].lower() if found else None
        return float(said == reference.answers[0]), {"yes": YES, "no": NO}.get(said, OTHER)

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """Over the questions with an answer."""
        references: list[OwnReference] = list(self.references.values())
        right, said = values[:, 0], values[:, 1]
        scores = {"accuracy": 100 * mean(right, answered)}
        kinds = mean_by([reference.kind for reference in references], right, answered)
        if len(kinds) > 1:
            scores |= {f"accuracy/{kind}": 100 * score for kind, score in kinds.items()}
        asked = answered & values.new_tensor([reference.kind == "yes_no" for reference in references]).bool()
        if asked.any():
            wanted = asked & values.new_tensor([reference.answers[0] == "yes" for reference in references]).bool()
            yes = asked & (said == YES)
            both = int(wanted.sum()) + int(yes.sum())
            scores["f1"] = 200 * int((yes & wanted).sum()) / both if both else 0.0
            scores["yes_ratio"] = 100 * mean(yes.double(), asked)
        named = answered & values.new_tensor([reference.category is not None for reference in references]).bool()
        by = mean_by([reference.category for reference in references], right, named)
        return scores | {f"category/{name}": 100 * score for name, score in by.items()}

    def shares(self, values: Tensor, answered: Tensor) -> Tensor:
        """Of the questions with an answer."""
        return where(answered, values[:, 0])
