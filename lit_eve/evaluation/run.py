"""The folder of an evaluation: whose answers it holds, the answers so far, and the results when all are there."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.progress import track
from torch import nn
from torch.distributed.tensor import DTensor

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation import report
from lit_eve.evaluation.answers import AnswerStore, file_name, note_missing, read_answers
from lit_eve.evaluation.benchmarks import Problems
from lit_eve.evaluation.benchmarks.files import read_lines
from lit_eve.evaluation.results import Result, score_task
from lit_eve.evaluation.tasks import Task
from lit_eve.files import write_atomically

if TYPE_CHECKING:
    from lit_eve.evaluation.judge import Judge

SETTINGS = "settings.json"
LOCK = ".lock"
PREDICTIONS = "predictions"
ANSWERS = "answers"  # of the settings: the files, where no model was asked
MODEL = "model"  # of the settings: told, but not compared: the weights tell which model it is

Unusable: TypeAlias = dict[Hashable, str]
"""Why questions could not be asked, by their ids."""


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
        self.unusable: dict[str, Unusable] = {task.name: {} for task in tasks}

    def keep(self, task: str, answers: Mapping[int, str], errors: Mapping[int, str]) -> None:
        """Write down answers to a task's questions, by their places, and why others could not be asked."""
        store = next(store for store in self.stores if store.task.name == task)
        store.append([store.task.questions[place] for place in answers], list(answers.values()))
        self.unusable[task] |= {store.task.questions[place].id: reason for place, reason in errors.items()}

    def finish(
        self,
        unusable: Sequence[Mapping[str, Unusable]],
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
            reasons = {id: reason for rank in unusable for id, reason in rank[task.name].items()}
            note_missing(store.path.name, task, answers, problems, reasons)
            found.append((task, answers, problems))
        return _score(found, self.model, self.output, judge, allow_partial)


def check_folder(output: Path) -> None:
    """Make a folder if it is not there; raise ConfigError if nothing can be written in it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise ConfigError(f"answers cannot be kept in {output}: {error.strerror}") from error


def lock_folder(output: Path) -> FileLock:
    """Keep other evaluations out of a folder, until the lock is released or this process ends, however it ends.

    Raises:
        ConfigError: another one is at work there.
    """
    check_folder(output)
    lock = FileLock(output / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"another evaluation is at work in {output}: wait for it, or choose another folder") from None
    return lock


def unlock_folder(lock: FileLock) -> None:
    """Let others in again."""
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def check_settings(output: Path, settings: Mapping[str, Any]) -> None:
    """Check that answers which come about so may go into a folder; called by one rank, before anything that takes long.

    Args:
        output: the folder; it is made if it is not there.
        settings: some of what decides about the answers.

    Raises:
        ConfigError: the folder holds answers that came about otherwise, or nothing can be written there.
    """
    check_folder(output)
    path = output / SETTINGS
    try:
        before = json.loads(path.read_text()) if path.exists() else None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it if the answers beside it are this model's") from error
    if before is None or not _holds_anything(output):
        return
    hint = ""
    changed = [key for key in settings if before.get(key) != settings[key] and key != MODEL]
    if before.get(ANSWERS) != settings.get(ANSWERS):
        hint = f"the results of {before.get(ANSWERS) or before.get(MODEL)}"
    elif changed:
        hint = f"answers with another {changed[0]} ({before.get(changed[0])!r}, now {settings[changed[0]]!r})"
        if before.get(MODEL) != settings.get(MODEL):
            hint += f", those of {before.get(MODEL)}"
    if hint:
        raise ConfigError(f"{output} holds {hint}: choose another folder, or remove this one")


def _holds_anything(output: Path) -> bool:
    """Whether there are answers or results in a folder: one call may have ended before its first answer."""
    answers = (output / PREDICTIONS).glob("*")
    return (output / report.JSON).exists() or any(path.stat().st_size > 0 for path in answers)


def claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Write down all that decides about the answers in a folder; called by one rank.

    Raises:
        ConfigError: see :func:`check_settings`.
    """
    check_settings(output, settings)
    write_atomically(output / SETTINGS, json.dumps(settings, indent=2) + "\n")


def _score(
    found: Sequence[tuple[Task, Mapping[Hashable, str], Problems]],
    model: str,
    output: Path,
    judge: Judge | None,
    allow_partial: bool,
) -> list[Result]:
    """Score each task and write the report of those that can be scored, also where others cannot.

    Under ``allow_partial``, tasks without an answer that counts are left out, unless that is all of them.
    """
    results, errors = [], []
    counting = {task.name for task, answers, _ in found if task.scored(answers)}
    if allow_partial and counting:
        for task, _, problems in found:
            if task.name not in counting:
                rank_zero_warn(f"{task.benchmark.title} is left out: {problems}")
        found = [row for row in found if row[0].name in counting]
    for task, answers, problems in found:
        try:
            results.append(score_task(task, answers, output, problems=problems, judge=judge, allow_partial=allow_partial))
        except LitEveError as error:
            errors.append(str(error))
    if results:
        report.write_report(results, model, output)
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
            may be the file. The folder of the report belongs to one source, or to the model whose answers it holds.
        tasks: what was asked.
        model: the name of the row.
        output: folder of the report.
        judge: grades answers where a benchmark needs it.
        allow_partial: score what can be used, instead of raising.

    Raises:
        ConfigError: there is nothing at ``source``, it is one file for several tasks, or the folder holds other answers.
        LitEveError: files are missing, or lines of them cannot be used; each is named. The other tasks are scored.
    """
    source, output = Path(source), Path(output)
    if not source.exists():
        raise ConfigError(f"there are no answers at {source}")
    if source.is_file() and len(tasks) > 1:
        raise ConfigError(f"{source} is one file, which holds the answers to one benchmark, not {len(tasks)}: give a folder")
    if not _are_of_a_run(source, output):
        claim(output, {ANSWERS: str(source.resolve())})
    found = []
    for task in tasks:
        path = source if source.is_file() else source / file_name(task)
        answers, problems = {}, Problems()
        if path.is_file():
            answers = read_answers(path, task, problems)
        else:
            problems.note(str(path), "there is no such file")
        found.append((task, answers, problems))
    return _score(found, model, output, judge, allow_partial)


def name_of_answers(source: Path, output: Path) -> str:
    """The model whose answers these are: as they say, if they are those of the run in ``output``, else the path's name."""
    if _are_of_a_run(source, output):
        files = [source] if source.is_file() else sorted(source.glob("*.jsonl"))
        rows = (row for file in files for _, row in read_lines(file, ("model_id",), Problems()))
        if row := next(rows, None):
            return str(row["model_id"])
    return source.stem if source.is_file() else source.resolve().name


def _are_of_a_run(source: Path, output: Path) -> bool:
    """Whether answers are those that the folder of a run holds itself."""
    return source.resolve().is_relative_to((output / PREDICTIONS).resolve())


def fingerprint(model: nn.Module, rank: int = 0) -> str:
    """A digest of all parameters as they are now, by name, wherever they came from; it takes about a second per GB.

    Sharded parameters are put together, one after the other, so that all ranks must call this; the first has the result.
    """
    digest = hashlib.sha256()
    parameters = list(model.named_parameters())
    for name, parameter in track(parameters, "which weights are these", disable=rank > 0, transient=True):
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        if rank > 0:
            continue
        whole = whole.detach().cpu().contiguous()
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}".encode())
        digest.update(whole.view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
