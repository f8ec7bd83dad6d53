"""VizWiz: blind people's questions about their photos, many without an answer (Gurari et al. 2018, arXiv 1802.08218)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

from lit_eve.evaluation.metrics.agreement import AgreementMetric, agreement
from lit_eve.evaluation.metrics.normalization import evalai_answer, one_line, plain_words, strip_punctuation


class VizWizReference(NamedTuple):
    """What ten people answered, and the type of their answers (yes/no, number, other, unanswerable)."""

    answers: tuple[str, ...]
    answer_type: str


class VizWiz(AgreementMetric):
    """Accuracy in percent: ``overall`` and ``answer_type/...``.

    A question without an answer counts as one with an empty answer; the official scorer stops there.

    Args:
        references: see :class:`BenchmarkMetric`.
        rules: ``eve``: answers go through EvalAI's processor, as EVE hands them in, and then to the VizWiz API.
            ``official``: the API alone. It normalises the answer, with curly apostrophes, but not what people answered.
            ``lmms_eval``: EvalAI's processor on both sides, one of the people left out.
        leave_one_out: what ``eve`` and ``official`` do: the published API leaves nobody out, so that three people who agree
            are worth 100; a later copy of it does, so that they are worth 90. Which of them the server runs is not public.
    """

    categories = ("answer_type",)

    def __init__(
        self,
        references: Mapping[Hashable, VizWizReference],
        rules: Literal["eve", "official", "lmms_eval"] = "eve",
        leave_one_out: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(references, **kwargs)
        self.rules = rules
        self.leave_one_out = leave_one_out or rules == "lmms_eval"

    def rate(self, reference: VizWizReference, answer: str) -> float:
        """From 0 to 1."""
        answers = reference.answers
        if self.rules != "official":
            answer = evalai_answer(answer)
        if self.rules == "lmms_eval":
            answers = tuple(map(evalai_answer, answers))
        else:
            answer = plain_words(strip_punctuation(one_line(answer)), curly=True)
        return agreement(answer, answers, self.leave_one_out)
