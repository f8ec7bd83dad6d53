"""What is to be evaluated: benchmarks by name, their questions, all checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import track

from lit_eve.errors import ConfigError
from lit_eve.evaluation.benchmarks import BENCHMARKS, Benchmark, Problems, Question
from lit_eve.processing import Sample
from lit_eve.processing.sample import IMAGE_PLACEHOLDER

ALL = "all"


@dataclass(frozen=True)
class Task:
    """A split of a benchmark.

    Args:
        benchmark: what it belongs to.
        split: which split.
        questions: those that are asked, in the official order.
        available: all that the files hold; more than are asked where a subset is taken.
        problems: why others of the files cannot be asked.
        source: the folder of the official files.
    """

    benchmark: Benchmark
    split: str
    questions: list[Question]
    available: list[Question]
    problems: Problems = field(default_factory=Problems)
    source: Path = Path()

    @property
    def name(self) -> str:
        """As on the command line: the benchmark's name, and the split if there are several."""
        return task_name(self.benchmark, self.split)

    @property
    def has_answers(self) -> bool:
        """Whether answers can be scored here, without a server."""
        return self.split not in self.benchmark.unanswered

    def samples(self) -> list[Sample]:
        """The questions as samples, with the image before the text."""
        return [Sample(question.place, _conversation(question), question.images) for question in self.questions]


def task_name(benchmark: Benchmark, split: str) -> str:
    """``pope``, ``vqav2:val``."""
    return benchmark.name if len(benchmark.splits) == 1 else f"{benchmark.name}:{split}"


def find_tasks(names: str | Sequence[str], data: str | Path, *, while_training: bool = False) -> list[tuple[Benchmark, str]]:
    """The benchmarks and splits that are asked for, in the order of the papers' tables; their files are there.

    Args:
        names: ``all``, names such as ``pope`` or ``vqav2:val``, or a text of names with commas between them. Without a split,
            the first is meant whose files are there and whose answers are too; then the first for a server.
        data: holds a folder for each benchmark, named like it.
        while_training: refuse what cannot be scored while a model is trained, for want of answers or a judge.

    Raises:
        ConfigError: an unknown name, files that are missing, all of them named, or a package that is.
    """
    asked = [name.strip() for text in ([names] if isinstance(names, str) else names) for name in text.split(",")]
    if ALL in asked:
        if len(asked) > 1:
            raise ConfigError(f"all benchmarks are named, and {', '.join(name for name in asked if name != ALL)} beside them")
        asked = list(BENCHMARKS)
    if not Path(data).is_dir():
        raise ConfigError(f"there is no folder {data}; it should hold one for each benchmark: {', '.join(BENCHMARKS)}")
    tasks, missing = [], []
    for name in asked:
        benchmark_name, _, split = name.partition(":")
        if benchmark_name not in BENCHMARKS:
            raise ConfigError(f"unknown benchmark {benchmark_name!r}; known: {ALL}, {', '.join(BENCHMARKS)}")
        benchmark = BENCHMARKS[benchmark_name]
        if while_training:
            _check_scored_here(benchmark, split)
        try:
            tasks.append((benchmark, split or _first_split(benchmark, Path(data))))
            benchmark.check_files(Path(data, benchmark.name), tasks[-1][1])
            benchmark.check_packages()
        except ConfigError as error:
            missing.append(str(error))
    if missing:
        raise ConfigError("; ".join(missing) + ". the README lists all files; --benchmarks names those to evaluate")
    if len({task_name(*task) for task in tasks}) < len(tasks):
        raise ConfigError(f"a benchmark is named twice: {', '.join(asked)}")
    order = list(BENCHMARKS)
    return sorted(tasks, key=lambda task: order.index(task[0].name))


def load_tasks(
    found: Sequence[tuple[Benchmark, str]],
    data: str | Path,
    *,
    limit: int | None = None,
    allow_partial: bool = False,
    progress: bool = True,
) -> list[Task]:
    """Read the questions of benchmarks and splits.

    Args:
        found: what :func:`find_tasks` found.
        data: see :func:`find_tasks`.
        limit: ask so many of each, evenly spread.
        allow_partial: leave out questions that cannot be used, instead of raising.
        progress: show a progress bar.

    Raises:
        LitEveError: as in :meth:`Benchmark.questions`.
    """
    tasks = []
    for benchmark, split in track(found, "reading questions", disable=not progress, transient=True):
        source = Path(data, benchmark.name)
        questions, problems = benchmark.load(source, split, allow_partial=allow_partial)
        tasks.append(Task(benchmark, split, subset(questions, limit), questions, problems, source))
    return tasks


def subset(questions: list[Question], limit: int | None) -> list[Question]:
    """About ``limit`` questions, evenly spread; those that count together stay together. All of them for None."""
    if limit is None or limit >= len(questions):
        return questions
    groups: dict[Hashable, list[Question]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(number if question.group is None else ("group", question.group), []).append(question)
    rows = list(groups.values())
    count = max(1, round(limit * len(rows) / len(questions)))
    chosen = {question.id for place in np.linspace(0, len(rows) - 1, count).round() for question in rows[int(place)]}
    return [question for question in questions if question.id in chosen]


def _check_scored_here(benchmark: Benchmark, split: str) -> None:
    """Raise ConfigError if answers to a split (empty: to any) cannot be scored while a model is trained."""
    if benchmark.needs_judge:
        raise ConfigError(f"{benchmark.name} needs a judge: it cannot be validated on")
    if split in benchmark.unanswered:
        others = [f"{benchmark.name}:{other}" for other in benchmark.splits if other not in benchmark.unanswered]
        hint = f"; take {' or '.join(others)}" if others else ""
        raise ConfigError(f"only a server knows the answers to {task_name(benchmark, split)}: it cannot be validated on{hint}")


def _first_split(benchmark: Benchmark, data: Path) -> str:
    scored_here = sorted(benchmark.splits, key=lambda split: split in benchmark.unanswered)
    for split in scored_here:
        try:
            benchmark.check_files(data / benchmark.name, split)
        except ConfigError:
            continue
        return split
    return scored_here[0]


def _conversation(question: Question) -> list[dict[str, str]]:
    places = IMAGE_PLACEHOLDER * len(question.images)
    return [{"role": "user", "content": f"{places}\n{question.prompt}" if places else question.prompt}]
