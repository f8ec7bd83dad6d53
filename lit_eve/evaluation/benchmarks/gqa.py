"""GQA: questions that are programs over scene graphs (Hudson and Manning 2019, arXiv 1902.09506)."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from lit_eve.evaluation.benchmarks.base import SHORT_ANSWER, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems, checked, read_json
from lit_eve.evaluation.metrics import GQA as GQAMetric
from lit_eve.evaluation.metrics import GQAReference
from lit_eve.evaluation.metrics.gqa import converted, reasoning_steps

QUESTIONS = "testdev_balanced_questions.json"
KEYS = {"question": str, "answer": str, "imageId": str, "isBalanced": bool, "types": dict, "groups": dict, "semantic": list}
DOWNLOADS = "https://downloads.cs.stanford.edu/nlp/data/gqa"


class GQA(Benchmark):
    """All questions of the file are asked, those that are not balanced too; only balanced ones are scored."""

    name = "gqa"
    title = "GQA"
    sources = (
        Source(QUESTIONS, "of questions1.2.zip, 1.4 GB", f"{DOWNLOADS}/questions1.2.zip"),
        Source("images", "20 GB, 398 of its images are used", f"{DOWNLOADS}/images.zip"),
    )
    splits = ("testdev",)
    sizes = {"testdev": 12_578}

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        for id, content in read_json(folder / QUESTIONS, dict).items():
            place = f"{QUESTIONS}, question {id}"
            row = checked(content, KEYS, place, problems)
            if row is None or (reference := _reference(row, place, problems)) is None:
                continue
            yield Question(
                id=id,
                prompt=row["question"] + SHORT_ANSWER,
                images=(folder / "images" / f"{row['imageId']}.jpg",),
                reference=reference,
                place=place,
            )

    def metric(self, questions: Sequence[Question]) -> GQAMetric:
        return GQAMetric({question.id: question.reference for question in questions})

    def submit(self, questions: Sequence[Question], answers: Mapping[Hashable, str], folder: Path) -> list[Path]:
        """``testdev_balanced_predictions.json``, which the official eval.py reads."""
        path = folder / "testdev_balanced_predictions.json"
        asked = [question.id for question in questions if question.id in answers]
        path.write_text(json.dumps([{"questionId": id, "prediction": converted(answers[id])} for id in asked]))
        return [path]


def _reference(row: Mapping, place: str, problems: Problems) -> GQAReference | None:
    try:
        hash(row["groups"]["global"])  # answers are counted by it
        return GQAReference(
            row["question"],
            row["answer"],
            row["types"]["structural"],
            row["types"]["semantic"],
            row["groups"]["global"],
            reasoning_steps(row["semantic"]),
            row["isBalanced"],
        )
    except (KeyError, TypeError) as error:
        problems.note(place, f"'types', 'groups' or 'semantic' are not as in the official file ({error})")
        return None
