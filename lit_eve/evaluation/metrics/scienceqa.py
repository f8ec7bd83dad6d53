"""ScienceQA: multiple choice from school books, half of it with images (Lu et al. 2022, arXiv 2209.09513)."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, where

LETTERS = "ABCDE"
FAILED = "FAILED"
NO_OPTION = -1


class ScienceQAReference(NamedTuple):
    """What a scorer must know of a question.

    Args:
        answer: index of the right option.
        options: how many there are.
        has_image: whether it has one.
        has_text: whether it has a hint.
        subject: natural science, social science or language science.
        grade: of school, 1 to 12.
    """

    answer: int
    options: int
    has_image: bool
    has_text: bool
    subject: str
    grade: int


TABLE: Mapping[str, Callable[[ScienceQAReference], bool]] = {
    "subject/NAT": lambda question: question.subject == "natural science",
    "subject/SOC": lambda question: question.subject == "social science",
    "subject/LAN": lambda question: question.subject == "language science",
    "context/TXT": lambda question: question.has_text,
    "context/IMG": lambda question: question.has_image,
    "context/NO": lambda question: not (question.has_text or question.has_image),
    "grade/G1-6": lambda question: question.grade <= 6,
    "grade/G7-12": lambda question: question.grade > 6,
}
"""The columns of the table in ScienceQA's paper, and the questions of each (tools/evaluate_acc.py)."""


def option_letter(answer: str) -> str:
    """The letter that EVE's script reads from an answer, which need not be an option of the question; or ``FAILED``.

    ``B``, ``B. text``, or ``The answer is B`` in one place with any character behind it. Nothing is stripped.
    """
    if found := re.match(r"([A-E])(\Z|\. )", answer):
        return found[1]
    letters = re.findall(r"The answer is ([A-Z]).", answer)
    return letters[0] if len(letters) == 1 else FAILED


def option_index(letter: str, options: int) -> int:
    """The index of the option with this letter, or `NO_OPTION` where it has none."""
    return LETTERS[:options].find(letter)


class ScienceQA(BenchmarkMetric):
    """Percent right: ``img``, of the questions with an image, which papers report; ``overall``; and the columns of `TABLE`.

    A question without an answer is wrong, but left out of ``img``, as in EVE's script.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve`` (eve/eval/eval_science_qa.py): see :func:`option_letter`. ``lmms_eval``: a letter in any casing, or a
            capital letter and a full stop at the start, after white space is stripped.
    """

    headline = "img"

    def __init__(
        self,
        references: Mapping[Hashable, ScienceQAReference],
        rules: Literal["eve", "lmms_eval"] = "eve",
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: ScienceQAReference, answer: str) -> float:
        """The index of the chosen option, or `NO_OPTION`."""
        letter = option_letter(answer) if self.rules == "eve" else _lmms_eval_letter(answer)
        return float(option_index(letter, reference.options))

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """``img``, ``overall`` and the columns that have questions."""
        references: list[ScienceQAReference] = list(self.references.values())
        right = (values[:, 0] == values.new_tensor([reference.answer for reference in references])) & answered
        hits = right.double()
        image = values.new_tensor([reference.has_image for reference in references]).bool()
        scores = {"img": 100 * mean(hits, image & answered), "overall": 100 * mean(hits)}
        for name, belongs in TABLE.items():
            column = values.new_tensor([belongs(reference) for reference in references]).bool()
            if column.any():
                scores[name] = 100 * mean(hits, column)
        return scores

    def shares(self, values: Tensor, answered: Tensor) -> Tensor:
        """Of the questions with an image and an answer."""
        references: list[ScienceQAReference] = list(self.references.values())
        image = values.new_tensor([reference.has_image for reference in references]).bool()
        return where(image & answered, values[:, 0] == values.new_tensor([reference.answer for reference in references]))


def _lmms_eval_letter(answer: str) -> str:
    found = re.match(r"([A-Z])\.|([A-Za-z])\Z", answer.strip())
    return (found[1] or found[2]).upper() if found else FAILED
