"""POPE: is an object there? Yes or no, in three splits of COCO images (Li et al. 2023, arXiv 2305.10355)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import SHORT_ANSWER, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems, read_lines
from lit_eve.evaluation.metrics import POPEReference

REPOSITORY = "https://github.com/AoiDragon/POPE/tree/main/output/coco"
PARTS = ("random", "popular", "adversarial")
KEYS = {"question_id": int, "image": str, "text": str, "label": str}
NUMBERED = "llava_pope_test.jsonl"
NUMBERED_KEYS = {"question_id": int, "image": str, "text": str, "category": str}


class POPE(Benchmark):
    """Ids are ``random/1``: the official files count from 1 in each of the three.

    In LLaVA's and EVE's files ids are numbers that run through all three. Where LLaVA's question file lies beside the folder
    ``coco``, the fields hold them, so that answer files are those of LLaVA and EVE.
    """

    name = "pope"
    title = "POPE"
    sources = (
        *(Source(f"coco/coco_pope_{part}.json", "0.4 MB", REPOSITORY) for part in PARTS),
        Source("val2014", "6 GB, 500 of its images are used", "http://images.cocodataset.org/zips/val2014.zip"),
    )
    sizes = {"test": 9000}
    metric_class = metrics.POPE

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        """LLaVA's file lacks some questions of today's repository; what it does not number keeps its own id."""
        numbers = _numbers(folder / NUMBERED, problems)
        for part in PARTS:
            for place, row in read_lines(folder / f"coco/coco_pope_{part}.json", KEYS, problems):
                if row["label"] not in ("yes", "no"):
                    problems.note(place, f"the label {row['label']!r} is none of yes, no")
                    continue
                prompt = row["text"] + SHORT_ANSWER
                same = numbers.get((part, row["image"], prompt))
                yield Question(
                    id=f"{part}/{row['question_id']}",
                    prompt=prompt,
                    images=(folder / "val2014" / row["image"],),
                    reference=POPEReference(part, row["label"]),
                    place=place,
                    fields={"question_id": same.popleft()} if same else {},
                )

    def id_hint(self, folder: Path, questions: Sequence[Question]) -> str:
        """Numbers that run through all three parts mean nothing without LLaVA's file."""
        if (folder / NUMBERED).exists():
            return super().id_hint(folder, questions)
        return (
            f"; ids are such as {questions[0].id!r}: the numbers of LLaVA's and EVE's files are known by {NUMBERED}, which is "
            f"in LLaVA's eval.zip, in the folder pope, and belongs in {folder}"
        )


def _numbers(path: Path, problems: Problems) -> dict[tuple[str, str, str], deque[int]]:
    """LLaVA's numbers by part, image and prompt, several where a question is there several times; none without the file."""
    numbers: dict[tuple[str, str, str], deque[int]] = {}
    for _, row in read_lines(path, NUMBERED_KEYS, problems) if path.exists() else ():
        numbers.setdefault((row["category"], row["image"], row["text"]), deque()).append(row["question_id"])
    return numbers
