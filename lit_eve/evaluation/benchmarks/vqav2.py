"""VQAv2: open questions about COCO images (Goyal et al. 2017, arXiv 1612.00837)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import SHORT_ANSWER, Answers, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems, read_entries
from lit_eve.evaluation.benchmarks.people import PEOPLE, known_type, ten_answers
from lit_eve.evaluation.metrics import VQAv2Reference
from lit_eve.evaluation.metrics.normalization import evalai_answer

FILES = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
TEST_ZIP = f"{FILES}/v2_Questions_Test_mscoco.zip"
IMAGES = "http://images.cocodataset.org/zips"
QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
QUESTION_KEYS = {"question_id": int, "image_id": int, "question": str}
ANNOTATION_KEYS = {"question_id": int, "answers": list, "answer_type": str, "question_type": str}
ANSWER_TYPES = ("yes/no", "number", "other")
TEST = ("test-dev", "test")


class VQAv2(Benchmark):
    """Papers report test-dev, a part of test. Its answers are with a server, as are those of test; val is scored here."""

    name = "vqav2"
    title = "VQAv2"
    sources = (
        Source(QUESTIONS.format("test-dev2015"), "107,394 questions", TEST_ZIP, ("test-dev",)),
        Source(QUESTIONS.format("test2015"), "42 MB", TEST_ZIP, TEST),
        Source("test2015", "12 GB, 81,434 images", f"{IMAGES}/test2015.zip", TEST),
        Source(QUESTIONS.format("val2014"), "214,354 questions", f"{FILES}/v2_Questions_Val_mscoco.zip", ("val",)),
        Source(ANNOTATIONS, "2,143,540 answers", f"{FILES}/v2_Annotations_Val_mscoco.zip", ("val",)),
        Source("val2014", "6 GB, 40,504 images", f"{IMAGES}/val2014.zip", ("val",)),
    )
    splits = ("test-dev", "val", "test")
    sizes = {"test-dev": 107_394, "val": 214_354, "test": 447_793}
    metric_class = metrics.VQAv2
    unanswered = TEST
    server = (
        "EvalAI, https://eval.ai/web/challenges/challenge-page/830 (a JSON list of question_id and answer, for all of test2015)"
    )

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        references = _references(folder / ANNOTATIONS, problems) if split == "val" else {}
        of_test = set(_test_ids(folder)) if split == "test-dev" else set()
        image_folder = folder / ("val2014" if split == "val" else "test2015")
        path = folder / QUESTIONS.format("test-dev2015" if split == "test-dev" else image_folder.name)
        for _, place, row in read_entries(path, QUESTION_KEYS, problems, "questions"):
            id = row["question_id"]
            if split == "val" and id not in references:
                problems.note(place, f"{ANNOTATIONS} has no answers to question {id}")
            elif split == "test-dev" and id not in of_test:
                problems.note(place, f"question {id} is not in {QUESTIONS.format('test2015')}")
            else:
                yield Question(
                    id=id,
                    prompt=row["question"] + SHORT_ANSWER,
                    images=(image_folder / f"COCO_{image_folder.name}_{row['image_id']:012d}.jpg",),
                    reference=references.get(id),
                    place=place,
                )

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        """``vqav2.json``: answers as EVE normalises them; of test-dev and test for all of test, empty where there is none."""
        ids = _test_ids(source) if split in TEST else [question.id for question in questions]
        rows = [{"question_id": id, "answer": evalai_answer(answers.get(id, ""))} for id in ids]
        path = output / "vqav2.json"
        path.write_text(json.dumps(rows))
        return [path]


def _test_ids(folder: Path) -> list[int]:
    path = folder / QUESTIONS.format("test2015")
    return [row["question_id"] for _, _, row in read_entries(path, QUESTION_KEYS, Problems(), "questions")]


def _references(path: Path, problems: Problems) -> dict[int, VQAv2Reference]:
    found: dict[int, VQAv2Reference] = {}
    for _, place, row in read_entries(path, ANNOTATION_KEYS, problems, "annotations"):
        answers = ten_answers(row, place, problems)
        if answers is None or not known_type(row, ANSWER_TYPES, place, problems):
            continue
        if len({str(answer.get("answer_id")) for answer in row["answers"] if isinstance(answer, dict)}) < PEOPLE:
            problems.note(place, "answers without an answer_id of their own, by which the official scorer tells them apart")
        elif row["question_id"] in found:
            problems.note(place, f"question {row['question_id']} is annotated twice")
        else:
            found[row["question_id"]] = VQAv2Reference(answers, row["answer_type"], row["question_type"])
    return found
