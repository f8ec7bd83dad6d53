"""The folder of an evaluation: whose answers it holds, the answers so far, and the results when all are there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.answers import AnswerStore, file_name, note_missing, read_answers
from lit_eve.evaluation.benchmarks import Problems
from lit_eve.evaluation.report import write_report
from lit_eve.evaluation.results import Result, score_task
from lit_eve.evaluation.tasks import Task

if TYPE_CHECKING:
    from lit_eve.evaluation.judge import Judge

SETTINGS = "settings.json"
PREDICTIONS = "predictions"
_STEP, _READ = 1 << 20, 1 << 12  # of every million bytes of a file, so many are looked at


class EvaluationRun:
    """An evaluation that can be stopped at any moment and gone on with.

    Args:
        output: the folder; see :mod:`lit_eve.evaluation.report` and :class:`AnswerStore` for what is in it.
        tasks: what is asked.
        model: the model's name in files and tables.
        rank: whose answers this process writes.
    """

    def __init__(self, output: str | Path, tasks: Sequence[Task], model: str, rank: int = 0) -> None:
        self.output = Path(output)
        self.tasks = list(tasks)
        self.model = model
        self.stores = [AnswerStore(self.output / PREDICTIONS, task, model, rank) for task in tasks]
        self.unusable: dict[str, list[str]] = {task.name: [] for task in tasks}

    def claim(self, settings: dict[str, Any]) -> None:
        """Write down what decides about the answers; called by one rank.

        Raises:
            ConfigError: the folder holds answers that came about otherwise.
        """
        path = self.output / SETTINGS
        if path.exists():
            try:
                before = json.loads(path.read_text())
            except ValueError as error:
                raise ConfigError(
                    f"{path} is damaged ({error}): remove it if the answers beside it are this model's"
                ) from error
            changed = [key for key in settings if before.get(key) != settings[key]]
            if changed:
                key = changed[0]
                raise ConfigError(
                    f"{self.output} holds answers with another {key} ({before.get(key)!r}, now {settings[key]!r}): choose "
                    "another folder, or remove this one"
                )
            return
        self.output.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(json.dumps(settings, indent=2) + "\n")
        os.replace(part, path)

    def keep(self, task: str, answers: Mapping[int, str], errors: Sequence[str] = ()) -> None:
        """Write down answers to a task's questions, by their places, and why others could not be asked."""
        store = next(store for store in self.stores if store.task.name == task)
        store.append([store.task.questions[place] for place in answers], list(answers.values()))
        self.unusable[task] += errors

    def finish(
        self,
        unusable: Sequence[Mapping[str, Sequence[str]]],
        judge: Judge | None = None,
        allow_partial: bool = False,
    ) -> list[Result]:
        """Score what was answered and write the report; for one rank, when all have finished.

        Args:
            unusable: what each rank has in ``unusable``.
            judge: grades answers where a benchmark needs it.
            allow_partial: score without what is missing.

        Raises:
            LitEveError: questions without an answer, unless ``allow_partial`` is set.
        """
        found = []
        for task, store in zip(self.tasks, self.stores, strict=True):
            answers, problems = store.known(), Problems()
            store.merge(answers)
            problems.lines += [line for rank in unusable for line in rank[task.name]]
            note_missing(store.path.name, task, answers, problems)
            found.append((task, answers, problems))
        return _score(found, self.model, self.output, judge, allow_partial)


def _score(
    found: Sequence[tuple[Task, Mapping[Hashable, str], Problems]],
    model: str,
    output: Path,
    judge: Judge | None,
    allow_partial: bool,
) -> list[Result]:
    """Score each task and write the report of those that can be scored, also where others cannot."""
    results, errors = [], []
    for task, answers, problems in found:
        try:
            results.append(score_task(task, answers, output, problems=problems, judge=judge, allow_partial=allow_partial))
        except LitEveError as error:
            errors.append(str(error))
    if results:
        write_report(results, model, output)
    if errors:
        raise LitEveError("; ".join(errors) + (f"; the others are in {output}" if results else ""))
    return results


def score_files(
    source: str | Path,
    tasks: Sequence[Task],
    model: str,
    output: str | Path,
    *,
    judge: Judge | None = None,
    allow_partial: bool = False,
) -> list[Result]:
    """Score answer files that are there already, of whatever model, and write the report.

    Args:
        source: a folder with a file for each task, named like it (``pope.jsonl``, ``vqav2-val.jsonl``); for a single task it
            may be the file.
        tasks: what was asked.
        model: the name of the row.
        output: folder of the report.
        judge: grades answers where a benchmark needs it.
        allow_partial: score what can be used, instead of raising.

    Raises:
        LitEveError: a file is missing, or lines of it cannot be used; each is named.
    """
    found = []
    for task in tasks:
        path = Path(source)
        if path.is_dir() or len(tasks) > 1:
            path = path / file_name(task)
        if not path.is_file():
            raise ConfigError(f"there are no answers to {task.benchmark.title}: {path} is missing")
        problems = Problems()
        found.append((task, read_answers(path, task, problems), problems))
    return _score(found, model, Path(output), judge, allow_partial)


def fingerprint(path: str | Path) -> str:
    """A digest that changes with the weights in a file or folder, without reading all of them.

    A few thousand bytes of every million in every file: a stage may train a single matrix, anywhere in it.
    """
    digest = hashlib.sha256()
    path = Path(path)
    for file in sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as content:
            for start in [*range(0, size, _STEP), max(size - _READ, 0)]:
                content.seek(start)
                digest.update(content.read(_READ))
    return digest.hexdigest()[:16]
