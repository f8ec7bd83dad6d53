"""MME: two yes/no questions an image, in ten tasks of perception and four of cognition (Fu et al. 2023, arXiv 2306.13394)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lit_eve.errors import ConfigError
from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import SHORT_ANSWER, Answers, Benchmark, Question, Source
from lit_eve.evaluation.benchmarks.files import Problems
from lit_eve.evaluation.metrics import MMEReference
from lit_eve.evaluation.metrics.mme import COGNITION, PERCEPTION

RELEASE = "MME_Benchmark_release_version"
ZIP = f"https://huggingface.co/datasets/darkyarding/MME/resolve/main/{RELEASE}.zip"
YES_OR_NO = " Please answer yes or no."
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
BLANKS = str.maketrans("\t\n\r", "   ")


class MME(Benchmark):
    """Two questions about an image count together.

    In LLaVA's and EVE's files an id is the path of the image, the same for both questions; the fields hold it. Ids here end in
    ``#1`` and ``#2`` (``artwork/images/14777.jpg#2``), which EVE's converter cuts off: it reads the task before the first
    slash, and the name after the last one up to the first full stop.
    """

    name = "mme"
    title = "MME"
    sources = (Source(RELEASE, "14 folders, one a task, 2,374 questions", ZIP),)
    splits = ("perception", "all")
    sizes = {"perception": 2114, "all": 2374}
    metric_class = metrics.MME

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        """The zip has one folder more, ``MME_Benchmark``; the tasks may lie in it or where it lies."""
        tasks = PERCEPTION if split == "perception" else (*PERCEPTION, *COGNITION)
        root = folder / RELEASE
        if (root / "MME_Benchmark").is_dir():
            root = root / "MME_Benchmark"
        if missing := [task for task in tasks if not (root / task).is_dir()]:
            raise ConfigError(f"{self.title}: {root} lacks the folders of tasks {', '.join(missing)} ({ZIP})")
        for task in tasks:
            yield from _read_task(root, task, problems)

    def notes(self, scores: Mapping[str, float]) -> list[str]:
        """Which tasks the sums lack."""
        kinds = (PERCEPTION, COGNITION) if "cognition" in scores else (PERCEPTION,)
        missing = [task for kind in kinds for task in kind if f"score/{task}" not in scores]
        return [f"the sum lacks {', '.join(missing)}"] if missing else []

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        """``<task>.txt`` for MME's eval_tool, as EVE's converter writes them, of images with both answers.

        A tab or line break in an answer becomes a blank: the tool would stop there. The answer is parsed alike.
        """
        answered = Counter(question.group for question in questions if question.id in answers)
        rows: dict[str, list[str]] = {}
        for question in questions:
            if answered[question.group] == 2:
                label, name = question.reference.label.capitalize(), f"{question.images[0].stem}.txt"
                fields = (name, question.fields["question"], label, answers[question.id].translate(BLANKS))
                rows.setdefault(question.reference.task, []).append("\t".join(fields) + "\n")
        for task, lines in rows.items():
            (output / f"{task}.txt").write_text("".join(lines), encoding="utf-8")
        return [output / f"{task}.txt" for task in rows]


def _read_task(root: Path, task: str, problems: Problems) -> Iterator[Question]:
    """In some tasks the images and the questions have folders of their own, in others they lie side by side."""
    texts = images = root / task
    if (texts / "questions_answers_YN").is_dir():
        texts, images = texts / "questions_answers_YN", images / "images"
    found = sorted(path for path in images.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    image_of = {path.stem: path for path in found}
    files = sorted(texts.glob("*.txt"))
    if not files:
        problems.note(str(texts.relative_to(root)), "there are no files with questions (*.txt)")
    for file in files:
        image = image_of.get(file.stem, images / f"{file.stem}.jpg")
        name = image.relative_to(root).as_posix()
        for number, (question, label, place) in enumerate(_read_pair(file, f"{task}/{file.name}", problems), 1):
            yield Question(
                id=f"{name}#{number}",
                prompt=question.replace(YES_OR_NO, "").strip() + SHORT_ANSWER,
                images=(image,),
                reference=MMEReference(task, file.stem, label),
                place=place,
                group=name,
                fields={"question_id": name, "question": question},
            )


def _read_pair(file: Path, name: str, problems: Problems) -> list[tuple[str, str, str]]:
    """Question, label and place of both lines; nothing if one of them cannot be used, for they count together."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        problems.note(name, f"no text in UTF-8 ({error})")
        return []
    pair, wrong = [], False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        question, *labels = line.strip().split("\t")
        if len(labels) == 1 and labels[0].lower() in ("yes", "no"):
            pair.append((question, labels[0].lower(), place))
        else:
            problems.note(place, f"not a question, a tab, and Yes or No: {line.strip()!r}")
            wrong = True
    if wrong:
        return []
    if len(pair) != 2:
        problems.note(name, f"there must be two questions about an image, not {len(pair)}")
        return []
    return pair
