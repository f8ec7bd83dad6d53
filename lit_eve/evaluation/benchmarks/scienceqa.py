"""ScienceQA: multiple choice from school books, half of it with images (Lu et al. 2022, arXiv 2209.09513)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.errors import ConfigError
from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import Answers, Benchmark, Question, Source, options_prompt
from lit_eve.evaluation.benchmarks.files import Problems, checked, read_json
from lit_eve.evaluation.metrics import ScienceQAReference
from lit_eve.evaluation.metrics.scienceqa import FAILED, LETTERS, NO_OPTION

REPOSITORY = "https://github.com/lupantech/ScienceQA/tree/main/data/scienceqa"
IMAGES = "https://scienceqa.s3.us-west-1.amazonaws.com/images"
PROBLEMS = "problems.json"
SPLITS = "pid_splits.json"
KEYS = {"question": str, "choices": list, "answer": int, "hint": str, "subject": str, "grade": str}
SUBJECTS = ("natural science", "social science", "language science")


class ScienceQA(Benchmark):
    """All questions are asked, those without an image too; papers report the others, "ScienceQA-IMG".

    Prompts are those of LLaVA's llava_test_CQM-A.json, which is made from the official files. In answer files those of
    questions with an image start with ``<image>``, by which EVE's scorer tells them.
    """

    name = "scienceqa"
    title = "ScienceQA-IMG"
    sources = (
        Source(PROBLEMS, "21,208 questions", REPOSITORY),
        Source(SPLITS, "0.5 MB", REPOSITORY),
        Source("images/test", "2,017 images", f"{IMAGES}/test.zip"),
    )
    sizes = {"test": 4241}
    metric_class = metrics.ScienceQA
    max_new_tokens = 1024

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        rows = read_json(folder / PROBLEMS, dict)
        ids = read_json(folder / SPLITS, dict).get(split)
        if not isinstance(ids, list):
            raise ConfigError(f"{folder / SPLITS} is not the official file: it has no list {split!r}")
        for number, id in enumerate(ids, 1):
            if not isinstance(id, str) or id not in rows:
                problems.note(f"{SPLITS}, {split}, entry {number}", f"{PROBLEMS} has no question {id!r}")
                continue
            row, place = rows[id], f"{PROBLEMS}, question {id}"
            if checked(row, KEYS, place, problems) and (reference := reference_of(row, place, problems)):
                prompt = prompt_of(row)
                yield Question(
                    id=id,
                    prompt=prompt,
                    images=(folder / "images" / split / id / row["image"],) if row["image"] else (),
                    reference=reference,
                    place=place,
                    fields={"prompt": f"<image>\n{prompt}"} if row["image"] else {},
                )

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        """``scienceqa_result.json``, as EVE's scorer writes it; ScienceQA's own tool takes it, if all of test are there."""
        metric = self.metric(questions)
        metric.update(list(answers), list(answers.values()))
        chosen = {id: int(option) for id, option in metric.by_question().items()}
        results = {question.id: chosen.get(question.id, NO_OPTION) for question in questions}
        correct = sum(results[question.id] == question.reference.answer for question in questions)
        content = {
            "acc": 100 * correct / len(questions),
            "correct": correct,
            "count": len(questions),
            "results": results,
            "outputs": {id: answers.get(id, FAILED) for id in results},
        }
        path = output / "scienceqa_result.json"
        path.write_text(json.dumps(content, indent=2))
        return [path]


def prompt_of(row: Mapping[str, Any]) -> str:
    """The prompt for a question; double blanks become one, as in LLaVA's scripts/convert_sqa_to_llava_base_prompt.py."""
    hint = row["hint"].strip()
    *others, last = row["choices"]
    return options_prompt(row["question"], [*others, last.rstrip()], hint and f"Context: {hint}").replace("  ", " ").lstrip()


def reference_of(row: Mapping[str, Any], place: str, problems: Problems) -> ScienceQAReference | None:
    """What the scorer needs; None, and a note, where options, labels or the image are not as they should be."""
    options = row["choices"]
    grade = re.fullmatch(r"grade(1[0-2]|[1-9])", row["grade"])
    if not 2 <= len(options) <= len(LETTERS) or not all(isinstance(option, str) for option in options):
        problems.note(place, f"'choices' must hold 2 to {len(LETTERS)} texts")
    elif not 0 <= row["answer"] < len(options):
        problems.note(place, f"'answer' is {row['answer']}, but there are {len(options)} choices, counted from 0")
    elif row["subject"] not in SUBJECTS:
        problems.note(place, f"the subject {row['subject']!r} is none of {', '.join(SUBJECTS)}")
    elif not grade:
        problems.note(place, f"the grade {row['grade']!r} is none of grade1 to grade12")
    elif "image" not in row or not isinstance(row["image"], str | None):
        problems.note(place, "'image' is neither the name of a file nor null")
    else:
        has_image, has_text = bool(row["image"]), bool(row["hint"])
        return ScienceQAReference(row["answer"], len(options), has_image, has_text, row["subject"], int(grade[1]))
    return None
