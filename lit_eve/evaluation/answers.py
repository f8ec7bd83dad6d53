"""Answer files: one JSON object per line, as the official code of LLaVA and EVE writes them, so that its scorers read them too.

{"question_id": 17, "prompt": "What is it?\\n...", "text": "Cat", "answer_id": "...", "model_id": "...", "metadata": {...}}

The official ``metadata`` is empty; here it holds the sizes of the question's images.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.evaluation.benchmarks import Problems, Question
from lit_eve.evaluation.benchmarks.files import SHOWN, read_lines
from lit_eve.evaluation.tasks import Task
from lit_eve.files import write_atomically

KEYS = ("question_id", "text")
EXAMPLE = '{"question_id": 17, "prompt": "What is it?", "text": "Cat"}'
OTHER_KEYS = ("answer", "prediction", "pred", "response", "output")  # of an answer, in files for servers and of other tools


def file_name(task: Task) -> str:
    """``pope.jsonl``, ``vqav2-val.jsonl``."""
    return f"{task.name.replace(':', '-')}.jsonl"


def record(question: Question, answer: str, model: str) -> dict[str, Any]:
    """The line of an answer file."""
    digest = hashlib.sha256(f"{model}/{question.id}/{question.prompt}".encode()).hexdigest()[:22]
    return {
        "question_id": question.id,
        "prompt": question.recorded_prompt,
        "text": answer,
        "answer_id": digest,
        "model_id": model,
        **question.fields,
        "metadata": _metadata(question),
    }


def read_answers(path: Path, task: Task, problems: Problems) -> dict[Hashable, str]:
    """The answers in a file that anyone may have written, by id of the question; those to questions not asked too.

    Args:
        path: the file.
        task: what was asked.
        problems: notes lines that are no answer, and questions that are unknown, answered twice or not answered.
    """
    if form := _other_format(path):
        problems.note(path.name, f"{form}; answers are read from lines, each an object with question_id and text: {EXAMPLE}")
        return {}
    find = _finder(task)
    ids = {str(question.official_id) for question in task.available}
    places: dict[Hashable, str] = {}
    answers: dict[Hashable, str] = {}
    told = False
    for place, row in read_lines(path, KEYS, problems):
        question = find(row, answers)
        if question is None:
            alike = str(row["question_id"]) in ids  # which several questions share
            hint = "" if told else task.benchmark.id_hint(task.source, task.available)
            problems.note(place, f"there is no question {row['question_id']!r}{' with this prompt' * alike}{hint}")
            told = True
        elif not isinstance(row["text"], str):
            problems.note(place, f"the answer to question {row['question_id']!r} is no text")
        elif question.id in answers:
            problems.note(place, f"question {row['question_id']!r} is answered twice, first in {places[question.id]}")
        else:
            answers[question.id], places[question.id] = row["text"], place
    note_missing(path.name, task, answers, problems)
    return answers


def _other_format(path: Path) -> str | None:
    """What a file is that holds answers in another form; None where it may be lines of objects."""
    start = path.read_bytes()
    if start.startswith(b"PK"):
        return "this is a table (.xlsx), as a server takes it"
    try:
        content = json.loads(start)
    except ValueError:  # several lines, or nothing that is known here
        content = None
    if isinstance(content, list):
        return "this is one JSON list, as a server takes it"
    if isinstance(content, dict) and not content.keys() & set(KEYS):
        return "this is one JSON object, as a server takes it"
    first = next((line for line in start.splitlines() if line.strip()), b"")
    try:
        row = json.loads(first)
    except ValueError:
        return None
    if isinstance(row, dict) and "text" not in row and (other := [key for key in OTHER_KEYS if key in row]):
        return f"its answers stand under {other[0]!r}"
    return None


def note_missing(
    place: str,
    task: Task,
    answers: Mapping[Hashable, str],
    problems: Problems,
    unusable: Mapping[Hashable, str] | None = None,
) -> None:
    """Note the questions that have no answer: those that could not be asked, each with its reason, and the others."""
    unusable = {id: reason for id, reason in (unusable or {}).items() if id not in answers}
    problems.lines += unusable.values()
    missing = [question.id for question in task.questions if question.id not in answers and question.id not in unusable]
    if missing:
        ids = ", ".join(map(repr, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        problems.note(place, f"{len(missing):,} of {len(task.questions):,} questions have no answer: {ids}")


class AnswerStore:
    """The answers of a run, which survive a kill at any moment: each rank appends to a file of its own as answers come.

        predictions/pope.jsonl          all answers, in the order of the questions, when the benchmark is complete
        predictions/.pope.jsonl.0       those of rank 0 until then
        predictions/.pope.jsonl.kept    those to questions that are gone or changed, which may come back

    Args:
        folder: ``predictions``.
        task: what is asked.
        model: the model's name in the files.
        rank: whose answers are appended.
    """

    def __init__(self, folder: Path, task: Task, model: str, rank: int = 0) -> None:
        self.task = task
        self.model = model
        self.path = folder / file_name(task)
        self._own = self._part(rank)
        self._kept = self._part("kept")

    def known(self) -> dict[Hashable, str]:
        """The answers so far, of all ranks.

        A question that was asked in other words, or about an image of another size in bytes, counts as not answered. Where no
        size was written down, as by official code, the image is taken to be the same.
        """
        find, answers = _finder(self.task), {}
        for row in self._rows():
            question = find(row, answers)
            if question is not None and _is_about(row, question):
                answers.setdefault(question.id, row["text"])
        return answers

    def append(self, questions: Sequence[Question], answers: Sequence[str]) -> None:
        """Write answers down, now."""
        self._own.parent.mkdir(parents=True, exist_ok=True)
        with self._own.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # cut off by a kill: what follows must not be taken for its rest
                    file.write(b"\n")
            for question, answer in zip(questions, answers, strict=True):
                file.write(_line(record(question, answer, self.model)).encode())

    def merge(self, answers: Mapping[Hashable, str]) -> None:
        """Write one file in the order of the questions, in place of the parts; for one rank, when all have finished.

        No answer is lost: those that are none to the questions as they are now go to a file of their own.
        """
        find = _finder(self.task)
        strays = [row for row in self._rows() if (question := find(row, ())) is None or not _is_about(row, question)]
        asked = [question for question in self.task.available if question.id in answers]
        if strays or self._kept.exists():
            write_atomically(self._kept, "".join(map(_line, strays)))
        write_atomically(self.path, "".join(_line(record(question, answers[question.id], self.model)) for question in asked))
        for path in self._parts():
            path.unlink()

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The lines of all files; one that a kill cut off is no answer."""
        for path in [self.path, *self._parts(), self._kept]:
            if path.exists():
                for _, row in read_lines(path, KEYS, Problems()):
                    yield row

    def _part(self, rank: int | str) -> Path:
        return self.path.with_name(f".{self.path.name}.{rank}")

    def _parts(self) -> list[Path]:
        return sorted(self.path.parent.glob(self._part("[0-9]*").name))


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _metadata(question: Question) -> dict[str, Any]:
    """What tells that an image was replaced by another of the same name."""
    sizes = [len(image) if isinstance(image, bytes) else os.stat(image).st_size for image in question.images]
    return {"image_bytes": sizes}


def _is_about(row: Mapping[str, Any], question: Question) -> bool:
    told, now = row.get("metadata"), _metadata(question)
    same = not isinstance(told, Mapping) or told.get("image_bytes", now["image_bytes"]) == now["image_bytes"]
    return same and row.get("prompt") == question.recorded_prompt


def _finder(task: Task) -> Callable[[Mapping[str, Any], Collection[Hashable]], Question | None]:
    """Finds the question of a line: by its official id or its own; where that is not unique, by its prompt too.

    Of several that are alike in both, it is the first that has no answer so far, and one that is asked before one that is not.
    """
    asked = {question.id for question in task.questions}
    by_id: dict[str, list[Question]] = {}
    for question in sorted(task.available, key=lambda question: question.id not in asked):
        for id in {str(question.official_id), str(question.id)}:
            by_id.setdefault(id, []).append(question)

    def find(row: Mapping[str, Any], answered: Collection[Hashable]) -> Question | None:
        found = by_id.get(str(row["question_id"]), [])
        if len(found) > 1:
            found = [question for question in found if row.get("prompt") == question.recorded_prompt]
        return next((question for question in found if question.id not in answered), found[0] if found else None)

    return find
