"""MME: yes/no questions, two about every image, in fourteen tasks (Fu et al. 2023, arXiv 2306.13394)."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path

from lit_eve.evaluation.benchmarks.base import SHORT_ANSWER, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems
from lit_eve.evaluation.metrics import MME as MMEMetric
from lit_eve.evaluation.metrics import MMEReference
from lit_eve.evaluation.metrics.mme import COGNITION, PERCEPTION

RELEASE = "MME_Benchmark_release_version"
ARCHIVE = f"https://huggingface.co/datasets/darkyarding/MME/blob/main/{RELEASE}.zip"
TASKS = {"perception": PERCEPTION, "all": (*PERCEPTION, *COGNITION)}
TEXTS, PICTURES = "questions_answers_YN", "images"  # the folders of some tasks; in others both kinds of files lie together
SUFFIXES = (".jpg", ".png", ".jpeg")
YES_OR_NO = re.compile(r"\s*Please answer yes or no\.\s*$")


class MME(Benchmark):
    """Ids are ``existence/0001.jpg/1`` and ``.../2``; in answer files both questions have the official ``existence/0001.jpg``,
    and their prompts tell them apart."""

    name = "mme"
    title = "MME-P"
    sources = (
        *(Source(f"{RELEASE}/{task}", f"of {RELEASE}.zip", ARCHIVE) for task in PERCEPTION),
        *(Source(f"{RELEASE}/{task}", f"of {RELEASE}.zip", ARCHIVE, ("all",)) for task in COGNITION),
    )
    splits = tuple(TASKS)
    sizes = {"perception": 2114, "all": 2374}
    unit = "points"
    top = 2000.0

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        for task in TASKS[split]:
            root = folder / RELEASE / task
            texts, pictures = (root / TEXTS, root / PICTURES) if (root / TEXTS).is_dir() else (root, root)
            images = {path.stem: path for path in pictures.iterdir() if path.suffix.lower() in SUFFIXES}
            for text in sorted(texts.glob("*.txt")):
                place = f"{task}/{text.name}"
                rows = _rows(text, place, problems)
                if rows and text.stem not in images:
                    problems.note(place, f"there is no image {pictures / text.stem}.jpg or .png")
                    continue
                for number, (question, label) in enumerate(rows, 1):
                    image = images[text.stem]
                    id = f"{task}/{image.name}"
                    yield Question(
                        id=f"{id}/{number}",
                        prompt=YES_OR_NO.sub("", question) + SHORT_ANSWER,
                        images=(image,),
                        reference=MMEReference(task, id, label == "Yes"),
                        place=f"{place}, line {number}",
                        group=id,
                        fields={"question_id": id},
                    )

    def metric(self, questions: Sequence[Question]) -> MMEMetric:
        return MMEMetric({question.id: question.reference for question in questions})

    def submit(self, questions: Sequence[Question], answers: Mapping[Hashable, str], folder: Path) -> list[Path]:
        """A file per task for the official tool (eval_tool.zip); tabs and line breaks in answers, which it cannot read, become
        blanks."""
        lines: dict[str, list[str]] = {}
        for question in questions:
            task, name, number = question.id.split("/")
            root = question.images[0].parent
            text = f"{Path(name).stem}.txt"
            path = (root.parent / TEXTS if root.name == PICTURES else root) / text
            asked, label = _rows(path, text, Problems())[int(number) - 1]
            answer = re.sub(r"[\t\r\n]", " ", answers.get(question.id, ""))
            lines.setdefault(task, []).append(f"{text}\t{asked}\t{label}\t{answer}\n")
        for task, rows in lines.items():
            (folder / f"{task}.txt").write_text("".join(rows), encoding="utf-8")
        return [folder / f"{task}.txt" for task in lines]


def _rows(path: Path, place: str, problems: Problems) -> list[tuple[str, str]]:
    """The two questions of an image and their answers, Yes or No; none if the file is not so."""
    lines = [line for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines() if line.strip()]
    if len(lines) != 2:
        problems.note(place, f"an image has two questions, not {len(lines)}")
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        question, _, label = line.rpartition("\t")
        if not question or label.strip() not in ("Yes", "No"):
            problems.note(f"{place}, line {number}", "it is not a question, a tab, and Yes or No")
            return []
        rows.append((question, label.strip()))
    return rows
