"""VQAv2: open questions about COCO images, ten answers of people to each (Goyal et al. 2017, arXiv 1612.00837)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

from lit_eve.evaluation.metrics.agreement import AgreementMetric, agreement
from lit_eve.evaluation.metrics.normalization import evalai_answer, one_line, plain_words, strip_punctuation


class VQAv2Reference(NamedTuple):
    """What ten people answered, the type of their answers (yes/no, number, other) and of the question (its first words)."""

    answers: tuple[str, ...]
    answer_type: str
    question_type: str


class VQAv2(AgreementMetric):
    """Accuracy in percent: ``overall``, ``answer_type/...`` and ``question_type/...``.

    A question without an answer counts as one with an empty answer, which EVE hands in for it.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve``: answers go through EvalAI's processor, as EVE hands them in, and then to the official scorer, which
            the server runs. ``official``: the official scorer alone (vqaEval.py of GT-Vision-Lab/VQA, under Python 2); it
            normalises nothing where all people gave the same answer, so that ``Yes`` is wrong beside ten times ``yes``.
            ``lmms_eval``: as the official scorer, but normalises always.
    """

    categories = ("answer_type", "question_type")

    def __init__(
        self,
        references: Mapping[Hashable, VQAv2Reference],
        rules: Literal["eve", "official", "lmms_eval"] = "eve",
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules

    def rate(self, reference: VQAv2Reference, answer: str) -> float:
        """From 0 to 1."""
        if self.rules == "eve":
            answer = evalai_answer(answer)
        texts = [one_line(text) for text in (answer, *reference.answers)]
        if self.rules == "lmms_eval":
            texts = [plain_words(strip_punctuation(text, commas=",+")) for text in texts]
        elif len(set(texts[1:])) > 1:
            texts = [plain_words(strip_punctuation(text, re.ASCII)) for text in texts]
        return agreement(texts[0], texts[1:])
