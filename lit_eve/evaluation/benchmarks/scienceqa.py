"""ScienceQA: multiple choice from school books, with or without an image (Lu et al. 2022, arXiv 2209.09513)."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.errors import ConfigError
from lit_eve.evaluation.benchmarks.base import Benchmark, Question, Source, options_prompt
from lit_eve.evaluation.benchmarks.files import Problems, checked, read_json
from lit_eve.evaluation.metrics import ScienceQA as ScienceQAMetric
from lit_eve.evaluation.metrics import ScienceQAReference
from lit_eve.evaluation.metrics.scienceqa import LETTERS, NONE, find_choice

PROBLEMS, SPLITS = "problems.json", "pid_splits.json"
KEYS = {"question": str, "choices": list, "answer": int, "hint": str, "image": object, "subject": str, "grade": str}
REPOSITORY = "https://github.com/lupantech/ScienceQA/tree/main/data/scienceqa"


class ScienceQA(Benchmark):
    """All questions of the test split are asked, those without an image as text alone; papers report those with one."""

    name = "scienceqa"
    title = "SQA-IMG"
    sources = (
        Source(PROBLEMS, "32 MB", REPOSITORY),
        Source(SPLITS, "0.2 MB", REPOSITORY),
        Source("images/test", "0.2 GB, 2,017 images", "https://scienceqa.s3.us-west-1.amazonaws.com/images/test.zip"),
    )
    sizes = {"test": 4241}
    max_new_tokens = 1024

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        rows, splits = read_json(folder / PROBLEMS, dict), read_json(folder / SPLITS, dict)
        if not isinstance(splits.get(split), list):
            raise ConfigError(f"{folder / SPLITS} is not the official file: it has no list {split!r}")
        for number, id in enumerate(splits[split], 1):
            if not isinstance(id, str) or id not in rows:
                problems.note(f"{SPLITS}, {split} {number}", f"{PROBLEMS} has no question {id!r}")
                continue
            place = f"{PROBLEMS}, question {id}"
            row = checked(rows[id], KEYS, place, problems)
            if row is None or (reference := _reference(row, place, problems)) is None:
                continue
            hint = f"Context: {row['hint']}" if row["hint"] else ""
            yield Question(
                id=id,
                prompt=options_prompt(row["question"], row["choices"], hint),
                images=(folder / "images" / split / id / row["image"],) if row["image"] else (),
                reference=reference,
                place=place,
            )

    def metric(self, questions: Sequence[Question]) -> ScienceQAMetric:
        return ScienceQAMetric({question.id: question.reference for question in questions})

    def submit(self, questions: Sequence[Question], answers: Mapping[Hashable, str], folder: Path) -> list[Path]:
        """``scienceqa.json``: the choices by id, from 0, which the tool of ScienceQA reads (evaluate_acc.py); -1: none."""
        path = folder / "scienceqa.json"
        results = {question.id: find_choice(answers.get(question.id, ""), question.reference.choices) for question in questions}
        path.write_text(json.dumps({"results": results}))
        return [path]


def _reference(row: Mapping[str, Any], place: str, problems: Problems) -> ScienceQAReference | None:
    choices, answer, grade = row["choices"], row["answer"], row["grade"].removeprefix("grade")
    if not 2 <= len(choices) <= len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        problems.note(place, f"'choices' must be 2 to {len(LETTERS)} texts")
    elif not NONE < answer < len(choices):
        problems.note(place, f"the answer {answer} is none of the {len(choices)} choices, which count from 0")
    elif not grade.isdecimal():
        problems.note(place, f"the grade {row['grade']!r} is not of the form 'grade7'")
    elif not (row["image"] is None or isinstance(row["image"], str)):
        problems.note(place, "'image' must be the name of a file, or null")
    else:
        return ScienceQAReference(len(choices), answer, bool(row["image"]), bool(row["hint"]), row["subject"], int(grade))
    return None
