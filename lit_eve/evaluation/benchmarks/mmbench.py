"""MMBench dev (English): multiple choice with the options in every order (Liu et al. 2023, arXiv 2307.06281)."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from lit_eve.errors import LitEveError
from lit_eve.evaluation import metrics
from lit_eve.evaluation.benchmarks.base import LETTERS, Answers, Benchmark, Question, Source, options_prompt
from lit_eve.evaluation.benchmarks.files import Problems, read_tsv
from lit_eve.evaluation.judge import Judge, ask_each
from lit_eve.evaluation.metrics import MMBenchReference
from lit_eve.evaluation.metrics.mmbench import EMPTY_CELLS, NOTHING_FITS, PASS, find_letter
from lit_eve.evaluation.optional import require
from lit_eve.processing.images import image_size

FILES = {"dev": "mmbench_dev_20230712.tsv", "dev_en": "MMBench_DEV_EN.tsv"}
LEGACY = "https://download.openmmlab.com/mmclassification/datasets/mmbench"
TODAY = "https://opencompass.openxlab.space/utils/benchmarks/MMBench"
COLUMNS = ("index", "question", "hint", "a", "b", "c", "d", "answer", "category", "image", "l2-category")
OPTIONS = LETTERS[:4]
LONGEST_REFERENCE = 64
"""Characters of an image cell up to which it names the row that has the image."""
NEEDED = ("question", "answer", "category", "l2-category")
TRIES = 3
SEED = 2680  # VLMEvalKit's


class MMBench(Benchmark):
    """One question per row: the passes of a question, with its options in another order, are rows of the file."""

    name = "mmbench"
    title = "MMBench"
    sources = (
        Source(FILES["dev"], "138 MB", f"{LEGACY}/{FILES['dev']}", ("dev",)),
        Source(FILES["dev_en"], "4,329 rows, one copy of each image", f"{TODAY}/{FILES['dev_en']}", ("dev_en",)),
    )
    splits = tuple(FILES)
    sizes = {"dev": 4377, "dev_en": 4329}
    metric_class = metrics.MMBench
    server = "mmbench.opencompass.org.cn takes the .xlsx; it asks ChatGPT about answers that its rules cannot read"
    max_new_tokens = 1024
    packages = ("openpyxl",)

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        rows: list[tuple[str, int, dict[str, str | None]]] = []
        images: dict[int, bytes | int] = {}  # of a row, or the row that has it
        shared: dict[bytes, bytes] = {}
        for place, cells in read_tsv(folder / FILES[split], COLUMNS, problems):
            image = cells.pop("image")
            if not cells["index"].isdecimal():
                problems.note(place, f"the index {cells['index']!r} is no number")
                continue
            index = int(cells["index"])
            if len(image) <= LONGEST_REFERENCE and image.isdecimal():
                images.setdefault(index, int(image))
            else:
                try:
                    data = decoded(image)
                except LitEveError as error:
                    problems.note(place, str(error), index % PASS)
                    continue
                images.setdefault(index, shared.setdefault(data, data))
            rows.append((place, index, {name: None if text in EMPTY_CELLS else text for name, text in cells.items()}))
        passes = Counter(index % PASS for _, index, _ in rows)  # of each question; there is one for each option
        is_damaged = len(problems) > 0  # lines that do not tell whose they are
        for place, index, row in rows:
            options = {letter: text for letter in OPTIONS if (text := row[letter.lower()]) is not None}
            image = images[index] if isinstance(images[index], bytes) else images.get(images[index])
            if lacking := [name for name in NEEDED if row[name] is None]:
                problems.note(place, f"the cell {lacking[0]!r} is empty", index % PASS)
            elif row["answer"] not in OPTIONS:
                problems.note(place, f"the answer {row['answer']!r} is none of {', '.join(OPTIONS)}", index % PASS)
            elif not isinstance(image, bytes):
                problems.note(place, f"its image is that of row {images[index]}, which has none", index % PASS)
            elif is_damaged and passes[index % PASS] < len(options):
                problems.note(place, "another pass of this question is missing", index % PASS)
            else:
                yield self._question(place, index, row, options, image)

    def _question(
        self, place: str, index: int, row: Mapping[str, str | None], options: Mapping[str, str], image: bytes
    ) -> Question:
        asked = list(takewhile(_is_said, (row[letter.lower()] for letter in OPTIONS)))
        return Question(
            id=index,
            prompt=options_prompt(row["question"], asked, row["hint"] if _is_said(row["hint"]) else ""),
            images=(image,),
            reference=MMBenchReference(
                options=options, split=row.get("split") or "dev", **{key.replace("-", "_"): row[key] for key in NEEDED}
            ),
            place=place,
            group=index % PASS,
            fields={"round_id": 0, "options": asked, "option_char": list(OPTIONS[: len(asked)])},
        )

    def judge(self, questions: Sequence[Question], answers: Answers, judge: Judge) -> dict[Hashable, str]:
        """The answers, with the letter that the judge finds in place of some that the rules cannot read.

        As in VLMEvalKit, questions with a pass that is wrong already are left alone, and so are the passes behind a wrong one.
        """
        letters = {
            question.id: find_letter(answers[question.id], question.reference.options)
            for question in questions
            if question.id in answers
        }
        groups: dict[Hashable, list[Question]] = {}
        for question in sorted(questions, key=lambda question: question.id):
            groups.setdefault(question.group, []).append(question)

        def is_open(passes: list[Question]) -> bool:
            found = [(letters.get(question.id, NOTHING_FITS), question.reference.answer) for question in passes]
            return any(letter is None for letter, _ in found) and all(letter in (None, right) for letter, right in found)

        def decide(passes: list[Question]) -> dict[Hashable, str]:
            found: dict[Hashable, str] = {}
            for question in passes:
                if letters[question.id] is None:
                    found[question.id] = self._ask(judge, question, answers[question.id])
                    if found[question.id] != question.reference.answer:
                        break
            return found

        judged = dict(answers)
        for found in ask_each(judge, decide, list(filter(is_open, groups.values())), "MMBench: the judge"):
            judged |= found
        return judged

    def _ask(self, judge: Judge, question: Question, answer: str) -> str:
        """The letter that a reply means; after three replies that mean none, one by chance, always the same for a row."""
        options = question.reference.options
        message = judge_message(question.reference, answer)
        for repetition in range(TRIES):
            if letter := find_letter(judge.ask(message, repetition=repetition), options):
                return letter
        return random.Random(f"{SEED} {question.id}").choice([*options, NOTHING_FITS])

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        openpyxl = require("openpyxl", f"The file for the server of {self.title}")
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet("Sheet1")

        def cell(text: str | None) -> Any:
            if not text:
                return None
            cell = openpyxl.cell.WriteOnlyCell(sheet, openpyxl.cell.cell.ILLEGAL_CHARACTERS_RE.sub("", text))
            cell.data_type = "s"  # also where it looks like a formula
            return cell

        sheet.append(["index", "question", *OPTIONS, "prediction", "answer", "split"])
        for question in questions:
            row: MMBenchReference = question.reference
            options = [row.options.get(letter) for letter in OPTIONS]
            texts = [row.question, *options, answers.get(question.id), row.answer, row.split]
            sheet.append([question.id, *map(cell, texts)])
        path = output / "mmbench.xlsx"
        book.save(path)
        return [path]


def judge_message(reference: MMBenchReference, answer: str) -> str:
    """Which option does an answer mean? The words are this project's; VLMEvalKit gives examples as well."""
    options = "\n".join(f"{letter}. {text}" for letter, text in reference.options.items())
    return (
        "Which option of a multiple-choice question does an answer mean?\n"
        "Reply with the capital letter of that option and nothing else, or with Z if the answer means none of them.\n\n"
        f"Question: {reference.question}\nOptions:\n{options}\nAnswer: {answer}\nLetter: "
    )


def decoded(cell: str) -> bytes:
    """The image behind base64 text.

    Raises:
        LitEveError: it is empty, damaged, or no image.
    """
    if not cell:
        raise LitEveError("the cell 'image' is empty")
    try:
        data = base64.b64decode(cell)
    except ValueError as error:  # binascii.Error too
        raise LitEveError(f"the cell 'image' is no base64 text: {error}") from error
    image_size(data, "the cell 'image'")
    return data


def _is_said(text: str | None) -> bool:
    """Whether a cell counts as filled for EVE's prompts (eve/eval/model_vqa_mmbench.py)."""
    return text is not None and text.lower() not in ("nan", "none")
