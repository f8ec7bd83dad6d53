"""MMBench: multiple choice, asked once for every place of the right option (Liu et al. 2023, arXiv 2307.06281)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lit_eve.evaluation.metrics.base import BenchmarkMetric, mean, mean_by

Rules: TypeAlias = Literal["2024_06", "head", "lmms_eval"]

PASS = 1_000_000
"""What the index of a row grows by from pass to pass of a question."""
NOTHING_FITS = "Z"
ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
EMPTY_CELLS = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "N/A", "n/a", "NA")
    + ("NULL", "null", "NaN", "-NaN", "nan", "-nan", "None")
)
"""What pandas, with which the official tools read tables, takes for an empty cell."""

_UNANSWERED = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_TO_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer\s+is\s+\**([ABCD])", flags=re.IGNORECASE)
# What may stand around a letter, one form after the other (lmms-eval).
_AROUND = [("", after) for after in ("", ".", ",", ":", ")", ").")]
_AROUND += [("(", ")"), ("(", ").")] + [(":", after) for after in ("", ",", ".", ")", ").")]


class MMBenchReference(NamedTuple):
    """One row of the official file: ``options`` by letter, the right letter, and where the question belongs."""

    question: str
    options: Mapping[str, str]
    answer: str
    category: str
    l2_category: str
    split: str = "dev"


class MMBench(BenchmarkMetric):
    """Accuracies in percent, by rules that look in an answer for the letter of an option, or for the text of just one.

    ``circular``: questions of which every pass is right; the reported one. ``vanilla``: first passes that are right.
    ``all_passes``: rows that are right. Each also by ability (``circular_l2_category/CP``) and by ``circular_category/...``.

    Answers in which the rules find nothing are wrong, as in VLMEvalKit's mode ``exact_matching``. With a judge
    (``Benchmark.judge``), the letters that it finds are rated in their place; it is asked only for what the circular score
    depends on. A row without an answer counts as an empty cell: wrong.

    Args:
        references: by the index of the row; the passes of a question are 1,000,000 apart.
        rules: ``2024_06``: VLMEvalKit in the month of the EVE paper. ``head``: VLMEvalKit of 2026, where the letter must be
            among the last four words, "answer is B" counts, and texts are not looked for in long answers. ``lmms_eval``:
            letters A to E, with a few forms of punctuation; nothing is taken for a refusal.
    """

    headline = "circular"

    def __init__(self, references: Mapping[Hashable, MMBenchReference], rules: Rules = "2024_06", **kwargs: Any) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: MMBenchReference, answer: str) -> float:
        """The letter that is found: 1 for A, 2 for B...; 0: none."""
        return letter_number(find_letter(answer, reference.options, self.rules))

    def summarize(self, values: Tensor, answered: Tensor) -> dict[str, float]:
        """Accuracies over all rows."""
        rows: list[MMBenchReference] = list(self.references.values())
        right = self._right(values)
        passes = self._passes()
        firsts = [places[0] for places in passes]
        every = torch.stack([right[places].min() for places in passes])
        scores: dict[str, float] = {}
        for name, hits, places in (
            ("circular", every, firsts),
            ("vanilla", right[firsts], firsts),
            ("all_passes", right, range(len(rows))),
        ):
            abilities = [ABBREVIATIONS.get(rows[place].l2_category, rows[place].l2_category) for place in places]
            categories = [rows[place].category for place in places]
            scores[name] = 100 * mean(hits)
            scores |= {f"{name}_l2_category/{key}": 100 * value for key, value in sorted(mean_by(abilities, hits).items())}
            scores |= {f"{name}_category/{key}": 100 * value for key, value in sorted(mean_by(categories, hits).items())}
        return scores

    def shares(self, values: Tensor, answered: Tensor) -> Tensor:
        """Of the first pass of each question, whether all are right."""
        right = self._right(values)
        shares = torch.full_like(right, torch.nan)
        for places in self._passes():
            shares[places[0]] = right[places].min()
        return shares

    def _right(self, values: Tensor) -> Tensor:
        labels = values.new_tensor([letter_number(row.answer) for row in self.references.values()])
        return (values[:, 0] == labels).double()

    def _passes(self) -> list[list[int]]:
        """The places of the passes of each question, the first pass first."""
        passes: dict[Hashable, list[int]] = {}
        for place, index in sorted(enumerate(self.references), key=lambda item: item[1]):
            passes.setdefault(index % PASS, []).append(place)
        return list(passes.values())


def letter_number(letter: str | None) -> int:
    """1 for A, 2 for B...; 0 for None."""
    return 0 if letter is None else ord(letter) - ord("A") + 1


def find_letter(answer: str, options: Mapping[str, str], rules: Rules = "2024_06") -> str | None:
    """The letter of the option that an answer means, `NOTHING_FITS` if it says that none does, None if that stays open.

    Args:
        answer: as the model wrote it.
        options: texts by capital letter.
        rules: see :class:`MMBench`.
    """
    if rules == "lmms_eval":
        return _letter_of_lmms_eval(answer) or _text_in(answer, options)
    if answer in EMPTY_CELLS:
        answer = "nan"
    letter = _letter_of_vlmevalkit(answer, options, rules == "head")
    if letter is None and not (rules == "head" and len(answer.lower()) > 2 * sum(map(len, options.values()))):
        letter = _text_in(answer, options)
    return letter


def _letter_of_vlmevalkit(answer: str, options: Mapping[str, str], head: bool) -> str | None:
    """vlmeval/utils/matching_util.py, can_infer_option."""
    if _UNANSWERED in answer:
        return None
    if any(refusal in answer for refusal in _REFUSALS):
        return NOTHING_FITS
    words = answer.translate(_TO_BLANKS).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and (not head or words.index(found[0]) >= len(words) - 4):
        return found[0]
    if not found and NOTHING_FITS in words:
        return NOTHING_FITS
    said = _ANSWER_IS.search(answer) if head else None
    return said[1].upper() if said and said[1].upper() in options else None


def _letter_of_lmms_eval(answer: str) -> str | None:
    """lmms_eval/tasks/mmbench/mmbench_evals.py, can_infer_option: one of A to E as a word, with something around it or not."""
    if _UNANSWERED in answer:
        return None
    words = answer.split()
    for before, after in _AROUND:
        found = [letter for letter in "ABCDE" if before + letter + after in words]
        an_article = not before + after and "A" in words and len(words) > 3
        if len(found) == 1 and not an_article:
            return found[0]
    return None


def _text_in(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter of the only option whose text the answer contains, in any casing."""
    answer = answer.lower()
    found = [letter for letter, text in options.items() if text.lower() in answer]
    return found[0] if len(found) == 1 else None
