"""VizWiz: blind people's questions about their photos (Gurari et al. 2018, arXiv 1802.08218)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import SHORT_ANSWER, Answers, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems, read_entries
from lit_eve.evaluation.benchmarks.people import known_type, ten_answers
from lit_eve.evaluation.metrics import VizWizReference
from lit_eve.evaluation.metrics.normalization import evalai_answer

HINT = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
FILES = "https://vizwiz.cs.colorado.edu/VizWiz_final"
ANNOTATIONS_ZIP = f"{FILES}/vqa_data/Annotations.zip"
QUESTION_KEYS = {"image": str, "question": str}
ANSWER_KEYS = {"answers": list, "answer_type": str}
ANSWER_TYPES = ("yes/no", "number", "other", "unanswerable")


class VizWiz(Benchmark):
    """Ids are the names of the images. In LLaVA's and EVE's files they are numbers, from 0, which the fields hold."""

    name = "vizwiz"
    title = "VizWiz"
    sources = (
        Source("test.json", "0.8 MB", ANNOTATIONS_ZIP, ("test",)),
        Source("test", "4 GB, 8,000 images", f"{FILES}/images/test.zip", ("test",)),
        Source("val.json", "4,319 questions", ANNOTATIONS_ZIP, ("val",)),
        Source("val", "2 GB, 4,319 images", f"{FILES}/images/val.zip", ("val",)),
    )
    splits = ("test", "val")
    sizes = {"test": 8000, "val": 4319}
    metric_class = metrics.VizWiz
    unanswered = ("test",)
    server = "EvalAI, https://eval.ai/web/challenges/challenge-page/2185 (a JSON list of image and answer, for all questions)"

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        """LLaVA's prompts have the question with its first letter large and all others small (8,000 of 8,000 are alike)."""
        keys = QUESTION_KEYS | (ANSWER_KEYS if split == "val" else {})
        for number, place, row in read_entries(folder / f"{split}.json", keys, problems):
            reference = _reference(row, place, problems) if split == "val" else None
            if split == "val" and reference is None:
                continue
            yield Question(
                id=row["image"],
                prompt=row["question"].capitalize() + HINT + SHORT_ANSWER,
                images=(folder / split / row["image"],),
                reference=reference,
                place=place,
                fields={"question_id": number},
            )

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        """``vizwiz.json``: answers as EVE normalises them. The server refuses it where a question has none."""
        answered = [question.id for question in questions if question.id in answers]
        rows = [{"image": id, "answer": evalai_answer(answers[id])} for id in answered]
        path = output / "vizwiz.json"
        path.write_text(json.dumps(rows))
        return [path]


def _reference(row: Mapping[str, Any], place: str, problems: Problems) -> VizWizReference | None:
    answers = ten_answers(row, place, problems)
    if answers is None or not known_type(row, ANSWER_TYPES, place, problems):
        return None
    return VizWizReference(answers, row["answer_type"])
