"""ScienceQA: multiple choice from school books, with or without an image (Lu et al. 2022, arXiv 2209.09513)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, mean_by

Rules: TypeAlias = Literal["eve", "lmms_eval"]
LETTERS = "ABCDE"
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}
NONE = -1
_SAID = re.compile(r"The answer is ([A-Z]).")  # the full stop is any character but a line break, as in the official pattern


class ScienceQAReference(NamedTuple):
    """How many choices there are, which is right (from 0), what stands with the question, and where it belongs."""

    choices: int
    answer: int
    has_image: bool
    has_text: bool
    subject: str
    grade: int


class ScienceQA(BenchmarkMetric):
    """Accuracy in percent.

    ``img``: over the questions with an image that have an answer; the reported one. ``overall``: over all questions, where no
    answer is a wrong one, as in the table of ScienceQA's own tool: ``subject/NAT`` (SOC, LAN), ``context/TXT`` (IMG, or NO:
    neither), ``grade/1-6`` and ``grade/7-12``.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve``: eve/eval/eval_science_qa.py; see :func:`find_choice`. ``lmms_eval``: the right letter, in any casing, or
            as a capital before a full stop; all scores are over the questions that have an answer.
    """

    headline = "img"

    def __init__(self, references: Mapping[Hashable, ScienceQAReference], rules: Rules = "eve", **kwargs: Any) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: ScienceQAReference, answer: str) -> float:
        """1 if it is right."""
        if self.rules == "lmms_eval":
            answer, letter = answer.strip(), LETTERS[reference.answer]
            return float(answer.lower() == letter.lower() or answer[:2] == f"{letter}.")
        return float(find_choice(answer, reference.choices) == reference.answer)

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """Accuracies over images, over everything, and by category."""
        rows: list[ScienceQAReference] = list(self.references.values())
        right = 100 * values[:, 0]
        counted = answered if self.rules == "lmms_eval" else torch.ones_like(answered)
        with_image, with_text = (torch.tensor([getattr(row, name) for row in rows]) for name in ("has_image", "has_text"))
        scores = {"img": mean(right, answered & with_image), "overall": mean(right, counted)}
        subjects = mean_by([SUBJECTS.get(row.subject, row.subject) for row in rows], right, counted)
        scores |= {f"subject/{name}": score for name, score in subjects.items()}
        for name, chosen in (("TXT", with_text), ("IMG", with_image), ("NO", ~with_text & ~with_image)):
            if (chosen := chosen & counted).any():
                scores[f"context/{name}"] = mean(right, chosen)
        grades = mean_by(["1-6" if row.grade <= 6 else "7-12" for row in rows], right, counted)
        return scores | {f"grade/{name}": score for name, score in grades.items()}


def find_choice(answer: str, choices: int) -> int:
    """The choice that an answer means, from 0; `NONE` if it means none of them.

    A letter alone; else a letter, a full stop and a blank at the start; else the only "The answer is X" with something behind
    it. All of it is case-sensitive, and outer blanks are not passed over.

    Args:
        answer: as the model wrote it.
        choices: how many there are: letters behind them mean nothing.
    """
    if answer in tuple(LETTERS):
        letter = answer
    elif len(answer) >= 3 and answer[0] in LETTERS and answer[1:3] == ". ":
        letter = answer[0]
    else:
        said = _SAID.findall(answer)
        letter = said[0] if len(said) == 1 else ""
    index = LETTERS.find(letter) if letter else NONE
    return index if index < choices else NONE
