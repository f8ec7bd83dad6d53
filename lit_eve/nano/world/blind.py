"""How well the questions of a set can be answered without looking: the number that a seeing model must beat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from lit_eve.nano.world.questions import Question


def blind_accuracy(questions: Iterable[Question]) -> dict[str, float]:
    """The best accuracy without images, by question type, and over all questions as "all".

    The guesser knows the set's answers: for each question it gives the most frequent answer among all questions of the same
    words, or of the same type where that is better over the whole type. A model that learnt from other questions does worse.
    """
    types: dict[str, Counter[str]] = defaultdict(Counter)
    texts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for question in questions:
        types[question.type][question.answer] += 1
        texts[question.type, question.text][question.answer] += 1
    right = {type: max(answers.values()) for type, answers in types.items()}
    by_text: Counter[str] = Counter()
    for (type, _), answers in texts.items():
        by_text[type] += max(answers.values())
    right = {type: max(count, by_text[type]) for type, count in right.items()}
    accuracy = {type: right[type] / answers.total() for type, answers in types.items()}
    return accuracy | {"all": sum(right.values()) / sum(answers.total() for answers in types.values())}
