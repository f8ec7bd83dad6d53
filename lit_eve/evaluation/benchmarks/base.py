"""What a benchmark declares: its official files, what is asked and how, who scores it, what is handed in to a server."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.evaluation.benchmarks.files import Problems
from lit_eve.evaluation.metrics import BenchmarkMetric
from lit_eve.evaluation.optional import require
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from lit_eve.evaluation.judge import Judge

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
LETTER_ANSWER = "\nAnswer with the option's letter from the given choices directly."
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Answers: TypeAlias = Mapping[Hashable, str]
"""Answers to questions, by their ids."""


class Source(NamedTuple):
    """A file or folder as it is downloaded.

    Args:
        path: where it must lie, relative to the benchmark's folder.
        size: how much it is, in words ("5 MB").
        url: where it comes from.
        splits: the splits that need it; none given: all.
    """

    path: str
    size: str
    url: str
    splits: tuple[str, ...] = ()


class Benchmarks(dict[str, "Benchmark"]):
    """Benchmarks by name, in the order of tables; one of your own joins them by ``@BENCHMARKS.register``, to be asked by name:
    "all" are those of the papers."""

    def register(self, kind: type[Benchmark]) -> type[Benchmark]:
        """Class decorator that adds a benchmark.

        Raises:
            ConfigError: it lacks something that every benchmark has, or another has its name.
        """
        needed = ("name", "title", "sources", "metric_class")
        if missing := [attribute for attribute in needed if not hasattr(kind, attribute)]:
            raise ConfigError(f"the benchmark {kind.__name__} has no {' and no '.join(missing)}")
        if re.fullmatch(r"[\w.-]+", kind.name) is None or kind.name == "all":
            raise ConfigError(f"the name of the benchmark {kind.__name__} is {kind.name!r}: it must be that of a folder")
        if kind.name in self and type(self[kind.name]) is not kind:
            raise ConfigError(f"a benchmark named {kind.name!r} is registered already")
        self[kind.name] = kind()
        return kind


@dataclass(frozen=True)
class Question:
    """One prompt of a benchmark.

    Args:
        id: as in the official answer file: what predictions are known by.
        prompt: the text, complete but for the image and the chat template.
        images: files or bytes.
        reference: what the metric must know; None where the answers are with a server.
        place: where it stands, in words ("coco_pope_random.json, line 12").
        group: questions of one group count together (the two of an MME image, the passes of an MMBench question).
        fields: what an official answer file says of it beside the usual.
    """

    id: Hashable
    prompt: str
    images: tuple[ImageSource, ...]
    reference: Any
    place: str
    group: Hashable = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def official_id(self) -> Hashable:
        """As official answer files have it; several questions may share it."""
        return self.fields.get("question_id", self.id)

    @property
    def recorded_prompt(self) -> str:
        """The prompt as official answer files have it."""
        return self.fields.get("prompt", self.prompt)


class Benchmark(ABC):
    """One of the benchmarks; a subclass is its declaration.

    Attributes:
        name: as on the command line; also the folder of its files.
        title: as in tables.
        sources: the official files.
        splits: the one that papers report first.
        sizes: questions of each split in the official files, where they are known.
        unanswered: splits whose answers only a server knows.
        server: where the files of :meth:`submit` are handed in, and in which format; None: scored here alone.
        metric_class: what scores the answers.
        max_new_tokens: of an answer.
        needs_judge: whether a language model must grade the answers.
        packages: of the extra ``eval``, which :meth:`submit` needs.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    sources: ClassVar[tuple[Source, ...]]
    splits: ClassVar[tuple[str, ...]] = ("test",)
    sizes: ClassVar[Mapping[str, int]] = {}
    unanswered: ClassVar[tuple[str, ...]] = ()
    server: ClassVar[str | None] = None
    metric_class: ClassVar[type[BenchmarkMetric]]
    max_new_tokens: ClassVar[int] = 128
    needs_judge: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        """The questions of a split, in the official order; what cannot be read is noted in ``problems`` and left out."""

    def metric(self, questions: Sequence[Question], judge: Judge | None = None) -> BenchmarkMetric:
        """The metric over these questions; what it rates comes from the judge, if there is one (:meth:`judge`)."""
        return self.metric_class({question.id: question.reference for question in questions})

    def notes(self, scores: Mapping[str, float]) -> list[str]:
        """What a reader of the scores must know."""
        return []

    def judge(self, questions: Sequence[Question], answers: Answers, judge: Judge) -> dict[Hashable, str]:
        """What the metric is to rate instead of the answers, where a language model has a say."""
        return dict(answers)

    def submit(self, questions: Sequence[Question], answers: Answers, output: Path, split: str, source: Path) -> list[Path]:
        """Write the files that the benchmark's server or tool takes; returns them. Nothing by default.

        Args:
            questions: those that were asked.
            answers: by id; a question may have none.
            output: an empty folder for the files.
            split: of the questions.
            source: the folder of the official files.
        """
        return []

    def id_hint(self, folder: Path, questions: Sequence[Question]) -> str:
        """What to add where an answer file has an id that no question has: what ids look like, and where others come from."""
        question = questions[0]
        either = dict.fromkeys((repr(question.official_id), repr(question.id)))
        return f"; ids are such as {' or '.join(either)}"

    def questions(self, folder: str | Path, split: str | None = None, *, allow_partial: bool = False) -> list[Question]:
        """The questions of a split, checked: all files and images are there, every id is there once.

        Args:
            folder: holds the official files.
            split: the first of ``splits`` by default.
            allow_partial: leave out what cannot be used, instead of raising.

        Raises:
            ConfigError: there is no such split, or files are missing; the message names all of them.
            LitEveError: lines, ids or images that cannot be used, each named with its line.
        """
        return self.load(folder, split, allow_partial=allow_partial)[0]

    def load(
        self, folder: str | Path, split: str | None = None, *, allow_partial: bool = False
    ) -> tuple[list[Question], Problems]:
        """:meth:`questions`, and what was wrong with those that were left out."""
        folder, split = Path(folder), split or self.splits[0]
        self.check_files(folder, split)
        problems = Problems()
        found: dict[Hashable, Question] = {}
        for question in self.read(folder, split, problems):
            missing = [image for image in question.images if isinstance(image, Path) and not image.is_file()]
            if question.id in found:
                problems.note(question.place, f"question {question.id!r} is there twice, first in {found[question.id].place}")
            elif missing:
                problems.note(question.place, f"the image {missing[0]} is missing", question.group)
            else:
                found[question.id] = question
        for question in [question for question in found.values() if question.group in problems.groups]:
            del found[question.id]
            problems.note(question.place, "left out with another question, with which it counts together")
        if problems and not allow_partial:
            raise LitEveError(f"{self.title}: {problems}")
        if not found:
            raise LitEveError(
                f"{self.title}: {folder} holds no question that can be used" + (f": {problems}" if problems else "")
            )
        return list(found.values()), problems

    def check_packages(self) -> None:
        """Raise ConfigError unless there is all that :meth:`submit` needs: worth asking before hours of answering."""
        for package in self.packages:
            require(package, f"The file for the server of {self.title}")

    def check_files(self, folder: Path, split: str) -> None:
        """Raise ConfigError unless the split exists and its files are there."""
        if split not in self.splits:
            raise ConfigError(f"{self.name} has no split {split!r}; it has: {', '.join(self.splits)}")
        needed = [source for source in self.sources if not source.splits or split in source.splits]
        if missing := [source for source in needed if not (folder / source.path).exists()]:
            names = "; ".join(f"{source.path} ({source.size}, {source.url})" for source in missing)
            raise ConfigError(f"{self.title}: {folder} lacks {names}")


def options_prompt(question: str, options: Sequence[str], hint: str = "") -> str:
    """A multiple-choice prompt: hint line, question, ``A. option`` lines and the sentence that asks for a letter."""
    lines = [
        *([hint] if hint else []),
        question,
        *(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)),
    ]
    return "\n".join(lines) + LETTER_ANSWER
