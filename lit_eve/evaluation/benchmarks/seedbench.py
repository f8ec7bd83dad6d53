"""SEED-Bench: multiple choice about images in nine dimensions, and videos in three (Li et al. 2023, arXiv 2307.16125)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.errors import ConfigError
from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import LETTERS, Answers, Benchmark, Question, Source, options_prompt
from lit_eve.evaluation.benchmarks.files import Problems, checked, read_entries, read_json
from lit_eve.evaluation.metrics import SEEDBenchReference

FILES = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench/resolve/main"
ANNOTATIONS = "SEED-Bench.json"
IMAGES = "SEED-Bench-image"
TWICE = 49914  # two questions of the official file have this id
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
COMMON_KEYS = {"data_type": str, "question_id": str}
IMAGE_KEYS = {"answer": str, "data_id": str, "question": str, "question_type_id": int, **dict.fromkeys(CHOICES, str)}


class SEEDBench(Benchmark):
    """The questions about images; those about videos are passed over, as by EVE.

    Ids are whole numbers, which EVE's scorer needs in an answer file; in the annotations they are text. Two questions have the
    id 49914. The second is known here as ``49914#2``; in answer files and submissions both are 49914. EVE's scorer takes the
    answer to the second for both; here each has its own.
    """

    name = "seedbench"
    title = "SEED-Bench"
    sources = (
        Source(ANNOTATIONS, "19,242 questions, 14,233 of them about images", f"{FILES}/{ANNOTATIONS}"),
        Source(IMAGES, "the images of 14,233 questions", f"{FILES}/{IMAGES}.zip"),
    )
    splits = ("image",)
    sizes = {"image": 14233}
    metric_class = metrics.SEEDBench

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        """The names of the dimensions are those of the file: other tools number two of them the other way round."""
        path = folder / ANNOTATIONS
        dimensions = _dimensions(path)
        ids_of_two = iter((TWICE, f"{TWICE}#2"))
        for _, place, row in read_entries(path, COMMON_KEYS, problems, "questions"):
            if _is_image_question(row, dimensions, place, problems):
                number = int(row["question_id"])
                yield Question(
                    id=next(ids_of_two, number) if number == TWICE else number,
                    prompt=options_prompt(row["question"], [row[choice] for choice in CHOICES]),
                    images=(folder / IMAGES / row["data_id"],),
                    reference=SEEDBenchReference(dimensions[row["question_type_id"]], row["answer"]),
                    place=place,
                    fields={"question_id": number},
                )

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        """``seedbench.jsonl`` for the leaderboard, in the format of LLaVA's script; of the questions about images alone."""
        rows = [
            {"question_id": str(question.fields["question_id"]), "prediction": answers[question.id]}
            for question in questions
            if question.id in answers
        ]
        path = output / "seedbench.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [path]


def _dimensions(path: Path) -> dict[int, str]:
    """Names by id."""
    found = read_json(path, dict).get("question_type")
    if not isinstance(found, dict) or not all(isinstance(id, int) for id in found.values()):
        raise ConfigError(f"{path} is not the official file: it has no object 'question_type' with the ids of the dimensions")
    return {id: name for name, id in found.items()}


def _is_image_question(row: Mapping[str, Any], dimensions: Mapping[int, str], place: str, problems: Problems) -> bool:
    """Whether it is to be asked; what is wrong with it is noted."""
    if row["data_type"] == "video":
        return False
    if row["data_type"] != "image":
        problems.note(place, f"data_type {row['data_type']!r} is none of image, video")
    elif not row["question_id"].isdecimal():
        problems.note(place, f"question_id {row['question_id']!r} is no number; only those about videos have letters")
    elif checked(row, IMAGE_KEYS, place, problems) is None:
        pass  # noted
    elif row["question_type_id"] not in dimensions:
        problems.note(place, f"question_type_id {row['question_type_id']} is none of those in 'question_type'")
    elif row["answer"] not in LETTERS[: len(CHOICES)] or len(row["answer"]) != 1:
        problems.note(place, f"answer {row['answer']!r} is none of {', '.join(LETTERS[: len(CHOICES)])}")
    else:
        return True
    return False
