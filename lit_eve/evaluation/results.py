"""From answers to scores: what is missing is told, a judge is asked where one is needed, files for servers are written."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eve.errors import LitEveError
from lit_eve.evaluation.benchmarks import Benchmark, Problems, Question
from lit_eve.evaluation.intervals import confidence_interval
from lit_eve.evaluation.metrics import BenchmarkMetric
from lit_eve.evaluation.tasks import Task

if TYPE_CHECKING:
    from lit_eve.evaluation.judge import Judge


@dataclass(frozen=True)
class Result:
    """The outcome of one task.

    Args:
        task: the task's name.
        benchmark: the benchmark's name.
        score: the headline score in the benchmark's unit; None where a server or a judge is needed.
        scores: everything that the metric tells.
        interval: 95 % of the score, over other questions of the same kind; see :mod:`~lit_eve.evaluation.intervals`.
        answered: how many questions the score is over; see :meth:`Task.scored`.
        asked: how many were asked.
        official: how many the official set has.
        notes: what a reader of the table must know.
        problems: questions that could not be asked, and answers that could not be used.
        submission: files for a server or an official tool, relative to the output folder.
        world: what world the questions are of, where the papers' scores do not compare; see :attr:`Task.world`.
    """

    task: str
    benchmark: str
    score: float | None
    scores: dict[str, float]
    answered: int
    asked: int
    official: int
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    submission: list[str] = field(default_factory=list)
    world: str | None = None
    interval: tuple[float, float] | None = None


def score_task(
    task: Task,
    answers: Mapping[Hashable, str],
    output: Path,
    *,
    problems: Problems | None = None,
    judge: Judge | None = None,
    allow_partial: bool = False,
) -> Result:
    """Score the answers to a task and write its submission files.

    Args:
        task: what was asked.
        answers: by id of the question; others than those asked are passed over.
        output: submission files go to ``output/submissions``.
        problems: what is wrong with the answers.
        judge: grades answers where the benchmark needs it.
        allow_partial: score what is there, instead of raising.

    Raises:
        LitEveError: there are problems, and ``allow_partial`` is not set.
    """
    benchmark = task.benchmark
    found = [*task.problems.lines, *(problems.lines if problems else [])]
    if problems and not allow_partial:
        raise LitEveError(f"{benchmark.title}: {problems}; --allow-partial scores the rest")
    scored = task.scored(answers)
    if not scored:
        reasons = f": {problems}" if problems else ""
        raise LitEveError(
            f"{benchmark.title}: none of the {len(task.questions):,} questions has an answer that counts{reasons}"
        )
    official = benchmark.sizes.get(task.split, len(task.available))
    result = Result(task.name, benchmark.name, None, {}, len(scored), len(task.questions), official, problems=found)
    result = replace(result, world=task.world)
    notes = []
    if problems:
        notes.append(f"partial: {len(scored):,} of {len(task.questions):,} questions, {len(problems):,} problems")
    if alone := sum(question.id in answers for question in task.questions) - len(scored):
        notes.append(f"{alone:,} answers left out, as others that count with them are missing")
    if task.problems:
        notes.append(f"partial: {len(task.problems):,} problems in the benchmark's files")
    if len(task.questions) < len(task.available):
        notes.append(f"{len(task.questions):,} of {len(task.available):,} questions")
    elif not problems and len(scored) != official:
        notes.append(f"{len(scored):,} questions; the official set has {official:,}")
    if task.split != benchmark.splits[0]:
        notes.append(f"{task.split}; papers report {benchmark.splits[0]}")
    asked = {question.id: answers[question.id] for question in task.questions if question.id in answers}
    submission = _submit(task, asked, output)
    if not task.has_answers and len(scored) < official:
        notes.append(f"not scored: the server wants all {official:,} questions: {benchmark.server}")
    elif not task.has_answers:
        notes.append(f"to be handed in: {benchmark.server}")
    elif benchmark.needs_judge and judge is None:
        notes.append("needs a judge (--judge-url, or judge in a YAML)")
    else:
        texts = {question.id: answers[question.id] for question in scored}
        rated = benchmark.judge(scored, texts, judge) if judge is not None else texts
        if rated != texts:
            notes.append(f"judged by {judge.model}")
        metric = _rated(benchmark, scored, rated, judge)
        scores = metric.compute()
        notes += benchmark.notes(scores)
        interval = confidence_interval(metric.parts(), [question.images or question.id for question in scored])
        result = replace(result, score=scores[metric.headline], scores=scores, interval=interval)
    return replace(result, notes=notes, submission=submission)


def rate_answers(
    benchmark: Benchmark, questions: Sequence[Question], answers: Mapping[Hashable, str], judge: Judge | None = None
) -> tuple[str, dict[str, float]]:
    """The name of the headline score, and all scores, of answers (by id) to all of these questions; on this rank alone."""
    metric = _rated(benchmark, questions, answers, judge)
    return metric.headline, metric.compute()


def _rated(
    benchmark: Benchmark, questions: Sequence[Question], answers: Mapping[Hashable, str], judge: Judge | None
) -> BenchmarkMetric:
    """The metric, which has seen the answers."""
    metric = benchmark.metric(questions, judge)
    metric.distributed_available_fn = lambda: False  # all answers are here, and other ranks may be gone
    ids = [question.id for question in questions]
    metric.update(ids, [answers[id] for id in ids])
    return metric


def _submit(task: Task, answers: Mapping[Hashable, str], output: Path) -> list[str]:
    """Write the files for servers and official tools; their paths relative to ``output``."""
    folder = output / "submissions" / task.name.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    written = task.benchmark.submit(task.questions, answers, folder, task.split, task.source)
    for empty in (folder, folder.parent):
        if not any(empty.iterdir()):
            empty.rmdir()
    return [str(path.relative_to(output)) for path in written]
