"""What ten people answered, in the files of VQAv2, VizWiz and TextVQA."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from lit_eve.evaluation.benchmarks.files import Problems

PEOPLE = 10


def ten_answers(row: Mapping[str, Any], place: str, problems: Problems) -> tuple[str, ...] | None:
    """The texts of ``row["answers"]``, which are texts or objects with an ``answer``; None, and a note, if they are not ten."""
    texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in row["answers"]]
    if len(texts) != PEOPLE or not all(isinstance(text, str) for text in texts):
        problems.note(place, f"'answers' must hold {PEOPLE} answers in words; it has {sum(isinstance(t, str) for t in texts)}")
        return None
    return tuple(texts)


def known_type(row: Mapping[str, Any], types: Collection[str], place: str, problems: Problems) -> bool:
    """Whether ``row["answer_type"]`` is one of these; else it is noted."""
    if row["answer_type"] in types:
        return True
    problems.note(place, f"answer_type {row['answer_type']!r} is none of {', '.join(types)}")
    return False
