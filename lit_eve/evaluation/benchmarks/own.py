"""A benchmark of one's own: a file with one question per line, named by its path wherever a benchmark is named.

{"image": "photos/1.jpg", "question": "Is there a dog?", "answer": "yes"}
{"image": "photos/2.jpg", "question": "What is it?", "options": ["a cat", "a dog"], "answer": "B"}
{"image": "photos/3.jpg", "question": "What colour is it?", "answers": ["grey", "gray"]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_eve.errors import ConfigError
from lit_eve.evaluation.benchmarks.base import LETTERS, SHORT_ANSWER, Benchmark, Question, options_prompt
from lit_eve.evaluation.benchmarks.files import Problems, read_lines
from lit_eve.evaluation.metrics.own import OwnMetric, OwnReference
from lit_eve.files import local_path

SUFFIX = ".jsonl"
KEYS = ("image", "images", "question", "answer", "answers", "options", "id", "category", "prompt")


class OwnBenchmark(Benchmark):
    """Of each line: ``question``; ``answer`` or a list ``answers``; and what else `KEYS` has, where it is wanted.

    ``image`` (or a list ``images``) is a path beside the file; without one the question is asked without. ``options`` make a
    multiple choice, whose answer is a letter or the text of an option. ``prompt`` replaces the prompt that is made of question
    and options, ``id`` the number of the line, from 1, and ``category`` breaks the scores down.

    Args:
        path: of the file; its name is that of the benchmark.

    Raises:
        ConfigError: there is no such file.
    """

    sources = ()
    metric_class = OwnMetric

    def __init__(self, path: str | Path) -> None:
        self.path = Path(local_path(path, "benchmarks"))
        self.name = self.title = self.path.stem
        if not self.path.is_file():
            raise ConfigError(f"there is no file {self.path}")
        with self.path.open("rb") as file:
            self.sizes = {"test": sum(bool(line.strip()) for line in file)}

    def check_files(self, folder: Path, split: str) -> None:
        """The file is there since this was made; its images are looked for with the questions."""

    def read(self, folder: Path, split: str, problems: Problems) -> Iterator[Question]:
        """The folder of official files is not needed."""
        for place, row in read_lines(self.path, {"question": str}, problems):
            try:
                reference = _reference(row)
                images = _images(row, self.path.parent)
            except (ValueError, ConfigError) as error:
                problems.note(place, str(error))
                continue
            yield Question(
                id=row.get("id", int(place.rpartition(" ")[2])),
                prompt=row.get("prompt") or _prompt(row["question"], reference),
                images=images,
                reference=reference,
                place=place,
            )


def _prompt(question: str, reference: OwnReference) -> str:
    if reference.kind == "choice":
        return options_prompt(question, list(reference.options.values()))
    return question + SHORT_ANSWER


def _images(row: Mapping[str, Any], folder: Path) -> tuple[Path, ...]:
    names = row.get("images") or row.get("image") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("'image' must be a path, or 'images' a list of them")
    return tuple(Path(local_path(name, "image", folder)) for name in names)


def _reference(row: Mapping[str, Any]) -> OwnReference:
    """Raises ValueError, in words, where a line makes no question."""
    if unknown := [key for key in row if key not in KEYS]:
        raise ValueError(f"unknown key {unknown[0]!r}; there are {', '.join(KEYS)}")
    if ("answer" in row) == ("answers" in row):
        raise ValueError("it needs either 'answer' or a list 'answers'")
    answers = row["answers"] if "answers" in row else [row["answer"]]
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) and text.strip() for text in answers):
        raise ValueError("answers must be texts: write numbers in quotation marks")
    for key, kinds in (("id", str | int), ("category", str), ("prompt", str)):
        if key in row and (not isinstance(row[key], kinds) or isinstance(row[key], bool)):
            raise ValueError(f"{key!r} is no text")
    if "options" in row:
        return _choice(row["options"], answers, row.get("category"))
    plain = tuple(text.strip() for text in answers)
    if len(plain) == 1 and plain[0].lower() in ("yes", "no"):
        return OwnReference("yes_no", (plain[0].lower(),), category=row.get("category"))
    return OwnReference("text", plain, category=row.get("category"))


def _choice(texts: Any, answers: list[str], category: str | None) -> OwnReference:
    if not isinstance(texts, list) or not 2 <= len(texts) <= len(LETTERS) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"'options' must hold 2 to {len(LETTERS)} texts")
    options = dict(zip(LETTERS, texts, strict=False))
    if len(answers) != 1:
        raise ValueError("a question with options has one right answer")
    right = answers[0].strip()
    fitting = [letter for letter, text in options.items() if right in (letter, text)]
    if len(fitting) != 1:
        number = "more than one" if fitting else "none"
        raise ValueError(f"the answer {right!r} is {number} of the options and their letters")
    return OwnReference("choice", (fitting[0],), options, category)
