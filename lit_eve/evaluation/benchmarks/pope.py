"""POPE: is an object there? Yes or no, in three splits of COCO images (Li et al. 2023, arXiv 2305.10355)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_eve.evaluation.benchmarks.base import SHORT_ANSWER, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems, read_lines
from lit_eve.evaluation.metrics import POPE as POPEMetric
from lit_eve.evaluation.metrics import POPEReference

REPOSITORY = "https://github.com/AoiDragon/POPE/tree/main/output/coco"
PARTS = ("random", "popular", "adversarial")
KEYS = {"question_id": int, "image": str, "text": str, "label": str}


class POPE(Benchmark):
    """Ids are ``random/1``: the official files count from 1 in each of the three."""

    name = "pope"
    title = "POPE"
    sources = (
        *(Source(f"coco/coco_pope_{part}.json", "0.4 MB", REPOSITORY) for part in PARTS),
        Source("val2014", "6 GB, 500 of its images are used", "http://images.cocodataset.org/zips/val2014.zip"),
    )
    sizes = {"test": 9000}

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        for part in PARTS:
            for place, row in read_lines(folder / f"coco/coco_pope_{part}.json", KEYS, problems):
                if row["label"] not in ("yes", "no"):
                    problems.note(place, f"the label {row['label']!r} is none of yes, no")
                    continue
                yield Question(
                    id=f"{part}/{row['question_id']}",
                    prompt=row["text"] + SHORT_ANSWER,
                    images=(folder / "val2014" / row["image"],),
                    reference=POPEReference(part, row["label"]),
                    place=place,
                )

    def metric(self, questions: Sequence[Question]) -> POPEMetric:
        return POPEMetric({question.id: question.reference for question in questions})
