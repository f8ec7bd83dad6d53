"""What is to be evaluated: benchmarks by name, their questions, all checked before a model is loaded."""

from __future__ import annotations

import random
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from lit_eve.errors import ConfigError
from lit_eve.evaluation.benchmarks import BENCHMARKS, Benchmark, Problems, Question
from lit_eve.evaluation.benchmarks.own import SUFFIX, OwnBenchmark
from lit_eve.imports import module_of
from lit_eve.processing import Sample

ALL = "all"
SEED = 0  # of the choice of some questions
WORLD = "world.txt"


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
    def world(self) -> str | None:
        """What world the questions are of, where it is not that of the papers' rows; as ``world.txt`` beside them says."""
        path = self.source / WORLD
        return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None

    @property
    def has_answers(self) -> bool:
        """Whether answers can be scored here, without a server."""
        return self.split not in self.benchmark.unanswered

    def scored(self, answered: Collection[Hashable]) -> list[Question]:
        """The questions that are scored where these, by id, have an answer: the rule of every evaluation and validation.

        A question without an answer is in no score, neither as a wrong one nor as an empty one, and no other of its group is:
        an MMBench question of which one pass is answered would pass for one that is right in all of them.
        """
        lost = {question.group for question in self.questions if question.id not in answered} - {None}
        return [question for question in self.questions if question.id in answered and question.group not in lost]

    def samples(self) -> list[Sample]:
        """The questions as samples, with the image before the text."""
        return [Sample(question.place, _conversation(question), question.images) for question in self.questions]


def task_name(benchmark: Benchmark, split: str) -> str:
    """``pope``, ``vqav2:val``."""
    return benchmark.name if len(benchmark.splits) == 1 else f"{benchmark.name}:{split}"


def find_tasks(
    names: str | Sequence[str], data: str | Path | None, *, while_training: bool = False
) -> list[tuple[Benchmark, str]]:
    """The benchmarks and splits that are asked for, in the order of the papers' tables; their files are there.

    Args:
        names: ``all`` (those of the papers), names such as ``pope`` or ``vqav2:val``, paths of files of one's own
            (``mine.jsonl``, see :mod:`~lit_eve.evaluation.benchmarks.own`), or a text of these with commas between them.
            Without a split, the first is meant whose files are there and whose answers are too; then the first for a server.
        data: holds a folder for each benchmark, named like it; None: only files of one's own are asked.
        while_training: refuse what cannot be scored while a model is trained, for want of answers or a judge.

    Raises:
        ConfigError: an unknown name, files that are missing, all of them named, or a package that is (for the files for
            servers, which no training writes).
    """
    asked = [name.strip() for text in ([names] if isinstance(names, str) else names) for name in text.split(",")]
    own = [name for name in asked if name.endswith(SUFFIX)]
    asked = [name for name in asked if name not in own]
    if ALL in asked:
        if len(asked) > 1:
            raise ConfigError(f"all benchmarks are named, and {', '.join(name for name in asked if name != ALL)} beside them")
        asked = [name for name, benchmark in BENCHMARKS.items() if module_of(type(benchmark)) is None]  # your own are named
    if asked and (data is None or not Path(data).is_dir()):
        missing = f"there is no folder {data}; it" if data is not None else "no folder of benchmarks is named (--data); it"
        raise ConfigError(f"{missing} should hold one for each benchmark: {', '.join(BENCHMARKS)}")
    tasks = [_find_split(name, Path(data)) for name in asked] + [_own(path) for path in own]
    if not tasks:
        raise ConfigError(f"no benchmark is named; known: {ALL}, {', '.join(BENCHMARKS)}")
    if len(set(map(task_name, *zip(*tasks, strict=True)))) < len(tasks):
        raise ConfigError(f"a benchmark is named twice: {', '.join(asked)}")
    missing = []
    for benchmark, split in tasks:
        if while_training:
            _check_scored_here(benchmark, split)
        try:
            benchmark.check_files(Path(data or "", benchmark.name), split)
        except ConfigError as error:
            missing.append(str(error))
    if missing:
        lines = "".join(f"\n- {text}" for text in missing) if len(missing) > 1 else f" {missing[0]}"
        raise ConfigError(f"files are missing:{lines}\nThe README lists all files; --benchmarks names those to evaluate.")
    if not while_training:
        for benchmark, _ in tasks:
            benchmark.check_packages()
    order = [*BENCHMARKS, *(benchmark.name for benchmark, _ in tasks if benchmark.name not in BENCHMARKS)]
    return sorted(tasks, key=lambda task: order.index(task[0].name))


def load_tasks(
    found: Sequence[tuple[Benchmark, str]],
    data: str | Path | None,
    *,
    limit: int | None = None,
    allow_partial: bool = False,
    progress: bool = True,
) -> list[Task]:
    """Read the questions of benchmarks and splits.

    Args:
        found: what :func:`find_tasks` found.
        data: see :func:`find_tasks`.
        limit: ask so many of each; see :func:`subset`.
        allow_partial: leave out questions that cannot be used, instead of raising.
        progress: show a progress bar.

    Raises:
        LitEveError: as in :meth:`Benchmark.questions`, or a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit of the benchmarks must be at least 1, got {limit}")
    tasks = []
    for benchmark, split in track(found, "reading questions", disable=not progress, transient=True):
        source = Path(data or "", benchmark.name)
        questions, problems = benchmark.load(source, split, allow_partial=allow_partial)
        tasks.append(Task(benchmark, split, subset(questions, limit), questions, problems, source))
    return tasks


def subset(questions: list[Question], limit: int | None) -> list[Question]:
    """So many questions, in their order; all of them for None.

    They are spread evenly: one of each of as many stretches of equal length, by chance, but always the same. At equal distances
    all could have the same answer, where answers alternate. Those that count together stay together; then there can be a few
    less, or more where even the first of them are more.
    """
    if limit is None or limit >= len(questions):
        return questions
    groups: dict[Hashable, list[Question]] = {}
    for number, question in enumerate(questions):
        groups.setdefault(number if question.group is None else ("group", question.group), []).append(question)
    rows = list(groups.values())
    edges = np.linspace(0, len(rows), max(1, round(limit * len(rows) / len(questions))) + 1).astype(int).tolist()
    rng = random.Random(SEED)
    spread = [rng.randrange(start, end) for start, end in pairwise(edges)]
    others = sorted(set(range(len(rows))) - set(spread))
    chosen: set[Hashable] = set()
    for place in rng.sample(spread, len(spread)) + rng.sample(others, len(others)):
        if len(chosen) + len(rows[place]) <= limit or not chosen:
            chosen |= {question.id for question in rows[place]}
    return [question for question in questions if question.id in chosen]


def _own(path: str) -> tuple[Benchmark, str]:
    """The benchmark in a file of one's own."""
    benchmark = OwnBenchmark(path)
    if benchmark.name in (ALL, *BENCHMARKS):
        raise ConfigError(f"{path}: {benchmark.name} is the name of another benchmark; call the file otherwise")
    return benchmark, benchmark.splits[0]


def _find_split(name: str, data: Path) -> tuple[Benchmark, str]:
    """What ``pope`` or ``vqav2:val`` means."""
    benchmark_name, _, split = name.partition(":")
    if benchmark_name not in BENCHMARKS:
        own = f", or the path of a file of your own that ends in {SUFFIX}"
        raise ConfigError(f"unknown benchmark {benchmark_name!r}; known: {ALL}, {', '.join(BENCHMARKS)}{own}")
    benchmark = BENCHMARKS[benchmark_name]
    if split and split not in benchmark.splits:
        raise ConfigError(f"{benchmark.name} has no split {split!r}; it has: {', '.join(benchmark.splits)}")
    return benchmark, split or _first_split(benchmark, data)


def _check_scored_here(benchmark: Benchmark, split: str) -> None:
    """Raise ConfigError if answers to a split cannot be scored while a model is trained."""
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


def _conversation(question: Question) -> list[dict[str, Any]]:
    """In parts: ``<image>`` in the text of a question is no place for an image."""
    images = [{"type": "image"} for _ in question.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": "\n" * bool(images) + question.prompt}]}]
