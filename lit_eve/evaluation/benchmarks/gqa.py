"""GQA: questions made from scene graphs (Hudson and Manning 2019, arXiv 1902.09506)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import SHORT_ANSWER, Answers, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems, checked, read_json
from lit_eve.evaluation.metrics import GQAReference, gqa_prediction

QUESTIONS = "testdev_balanced_questions.json"
PREDICTIONS = "testdev_balanced_predictions.json"
KEYS = {"question": str, "answer": str, "imageId": str, "isBalanced": bool, "types": dict, "groups": dict, "semantic": list}
STRUCTURAL = ("verify", "query", "choose", "logical", "compare")
SEMANTIC = ("attr", "cat", "global", "obj", "rel")
NO_STEP = ("exist", "query: name", "choose name")  # operations that only put the result of others into words


class GQA(Benchmark):
    """EVE reports testdev, whose questions are balanced; it is scored here, as by the official eval.py."""

    name = "gqa"
    title = "GQA"
    sources = (
        Source(
            QUESTIONS,
            "12,578 questions, in questions1.2.zip (1.4 GB)",
            "https://cs.stanford.edu/people/dorarad/gqa/download.html",
        ),
        Source("images", "398 of its images are used", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip"),
    )
    splits = ("testdev",)
    sizes = {"testdev": 12_578}
    metric_class = metrics.GQA

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        for id, row in read_json(folder / QUESTIONS, dict).items():
            place = f"{QUESTIONS}, question {id}"
            if checked(row, KEYS, place, problems) and (reference := reference_of(row, place, problems)):
                yield Question(
                    id=id,
                    prompt=row["question"] + SHORT_ANSWER,
                    images=(folder / "images" / f"{row['imageId']}.jpg",),
                    reference=reference,
                    place=place,
                )

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        """``testdev_balanced_predictions.json``, which eval.py takes; it stops where a question has no answer."""
        rows = [
            {"questionId": question.id, "prediction": gqa_prediction(answers[question.id])}
            for question in questions
            if question.id in answers
        ]
        path = output / PREDICTIONS
        path.write_text(json.dumps(rows))
        return [path]


def reference_of(row: Mapping[str, Any], place: str, problems: Problems) -> GQAReference | None:
    """What the scorer needs; None, and a note, where a label is unknown or a step is none."""
    for name, known in (("structural", STRUCTURAL), ("semantic", SEMANTIC)):
        if row["types"].get(name) not in known:
            problems.note(place, f"the {name} type {row['types'].get(name)!r} is none of {', '.join(known)}")
            return None
    group = row["groups"].get("global")
    if not isinstance(group, str | None):
        problems.note(place, "'global' of 'groups' is no text")
        return None
    if not all(isinstance(step, dict) and {"operation", "argument"} <= step.keys() for step in row["semantic"]):
        problems.note(place, "a step of 'semantic' has no 'operation' and 'argument'")
        return None
    steps = [f"{step['operation']}: {step['argument']}" for step in row["semantic"]]
    return GQAReference(
        answer=row["answer"],
        structural=row["types"]["structural"],
        semantic=row["types"]["semantic"],
        steps=sum(not any(part in step for part in NO_STEP) for step in steps),
        words=len(row["question"].split()),
        group=group,
        balanced=row["isBalanced"],
    )
