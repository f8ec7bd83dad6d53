"""SEED-Bench: multiple choice in twelve dimensions, nine of them on images (Li et al. 2023, arXiv 2307.16125)."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from lit_eve.errors import ConfigError
from lit_eve.evaluation.benchmarks.base import LETTERS, Benchmark, Question, Source, options_prompt
from lit_eve.evaluation.benchmarks.files import Problems, checked, read_json
from lit_eve.evaluation.metrics import SEEDBench as SEEDBenchMetric
from lit_eve.evaluation.metrics import SEEDBenchReference

FILE = "SEED-Bench.json"
IMAGES = "SEED-Bench-image"
DATASET = "https://huggingface.co/datasets/AILab-CVC/SEED-Bench"
CHOICES = ("choice_a", "choice_b", "choice_c", "choice_d")
KEYS = {"question_id": str, "question": str, "answer": str, "data_id": str, "data_type": str, "question_type_id": int}
KEYS |= dict.fromkeys(CHOICES, str)


class SEEDBench(Benchmark):
    """Questions about images; those about videos are passed over, as EVE does."""

    name = "seedbench"
    title = "SEED"
    sources = (
        Source(FILE, "10 MB", DATASET),
        Source(IMAGES, "27 GB", f"{DATASET}, SEED-Bench-image.zip"),
    )
    splits = ("image",)
    sizes = {"image": 14_233}

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        content = read_json(folder / FILE, dict)
        if not (isinstance(content.get("question_type"), dict) and isinstance(content.get("questions"), list)):
            raise ConfigError(f"{folder / FILE} is not the official file: it lacks 'question_type' or the list 'questions'")
        dimensions = {number: name for name, number in content["question_type"].items()}
        for number, row in enumerate(content["questions"], 1):
            place = f"{FILE}, entry {number}"
            if isinstance(row, dict) and row.get("data_type") == "video":
                continue
            if (row := checked(row, KEYS, place, problems)) is None:
                continue
            if row["answer"] not in LETTERS[: len(CHOICES)] or len(row["answer"]) != 1:
                problems.note(place, f"the answer {row['answer']!r} is none of {', '.join(LETTERS[: len(CHOICES)])}")
            elif row["question_type_id"] not in dimensions:
                problems.note(place, f"there is no question_type {row['question_type_id']}")
            elif not row["question_id"].isdecimal():
                problems.note(place, f"the question_id {row['question_id']!r} is no number")
            else:
                yield Question(
                    id=int(row["question_id"]),  # EVE's scorer looks answers up by numbers
                    prompt=options_prompt(row["question"], [row[choice] for choice in CHOICES]),
                    images=(folder / IMAGES / row["data_id"],),
                    reference=SEEDBenchReference(row["answer"], dimensions[row["question_type_id"]]),
                    place=place,
                )

    def metric(self, questions: Sequence[Question]) -> SEEDBenchMetric:
        return SEEDBenchMetric({question.id: question.reference for question in questions})

    def submit(self, questions: Sequence[Question], answers: Mapping[Hashable, str], folder: Path) -> list[Path]:
        """``seedbench.jsonl`` for the leaderboard, as LLaVA writes it."""
        path = folder / "seedbench.jsonl"
        asked = [question.id for question in questions if question.id in answers]
        rows = [{"question_id": str(id), "prediction": answers[id]} for id in asked]
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return [path]
