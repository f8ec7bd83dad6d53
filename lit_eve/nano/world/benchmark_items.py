"""What a miniature benchmark is made from: a pool of scenes, balanced questions about them, and files."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from lit_eve.errors import ConfigError
from lit_eve.nano.world.prompts import UNANSWERABLE
from lit_eve.nano.world.questions import ALL_ANSWERS, PLURALS, TYPES, YES_NO, Ledger, Question, ask, questions
from lit_eve.nano.world.scenes import COLOURS, SHAPES, Scene, SceneSpec, draw, scenes

POOL = 2000  # scenes
NUMBERS = ("zero", "one", "two", "three", "four")


@cache
def benchmark_scenes(seed: int, spec: SceneSpec) -> tuple[Scene, ...]:
    """The scenes of all benchmarks of a world; none of their layouts is trained on."""
    return tuple(islice(scenes("benchmarks", seed, spec), POOL))


class Item(NamedTuple):
    """A question and its scene, which is ``number`` in the pool: items about the same scene share an image."""

    number: int
    scene: Scene
    question: Question

    @property
    def text(self) -> str:
        """The question, with a capital."""
        return self.question.text[0].upper() + self.question.text[1:]

    @property
    def answer(self) -> str:
        return self.question.answer


class Draft:
    """A benchmark in the making.

    Args:
        name: of the benchmark.
        folder: where it is written to.
        size: how many questions it shall have.
        pool: scenes to ask about.
        seed: of all that is drawn.
    """

    def __init__(self, name: str, folder: Path, size: int, pool: Sequence[Scene], seed: int) -> None:
        self.name, self.folder, self.size, self.pool = name, folder, size, pool
        self.rng = random.Random(f"benchmarks/{name}/{seed}")

    def items(self, types: Sequence[str], size: int | None = None, turns: int = 1) -> list[Item]:
        """Questions of some types, equally many of each, with level answers.

        Args:
            types: keys of `ALL_ANSWERS`.
            size: how many; the benchmark's size where it is not given.
            turns: at most so many about each scene.

        Raises:
            ConfigError: the pool does not hold so many.
        """
        size = self.size if size is None else size
        ledger = Ledger(weights=dict.fromkeys(TYPES, 0.0) | dict.fromkeys(types, 1.0))
        found: list[Item] = []
        for number, scene in self.shuffled_scenes():
            found += [Item(number, scene, question) for question in ask(scene, self.rng, ledger, turns)]
            if len(found) >= size:
                return found[:size]
        raise self.too_many(size)

    def pairs(self, type: str, size: int, pattern: str = "") -> list[tuple[Scene, tuple[Question, Question]]]:
        """Scenes with two questions each, the first to be answered by yes and the second by no.

        Args:
            type: of the questions.
            size: how many scenes.
            pattern: found in the text of each question.

        Raises:
            ConfigError: the pool does not hold so many.
        """
        ledger = Ledger(weights=dict.fromkeys(TYPES, 0.0) | {type: 1.0})
        found: list[tuple[Scene, tuple[Question, Question]]] = []
        for _, scene in self.shuffled_scenes():
            candidates = [question for question in questions(scene, type) if re.search(pattern, question.text)]
            self.rng.shuffle(candidates)
            admitted = (filter(ledger.admits, (q for q in candidates if q.answer == answer)) for answer in YES_NO)
            yes, no = (next(questions, None) for questions in admitted)
            if yes and no:
                ledger.add(yes)
                ledger.add(no)
                found.append((scene, (yes, no)))
            if len(found) == size:
                return found
        raise self.too_many(size)

    def shuffled_scenes(self) -> list[tuple[int, Scene]]:
        """Each scene of the pool behind its number."""
        return self.rng.sample(list(enumerate(self.pool)), len(self.pool))

    def too_many(self, size: int) -> ConfigError:
        return ConfigError(f"{self.name}: the {len(self.pool)} scenes of the benchmarks do not give {size} balanced questions")

    def image(self, path: str, scene: Scene) -> None:
        """Save a scene, unless it is there: as PNG where the name says so, else as JPEG."""
        if not (target := self.folder / path).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(encoded(scene, "PNG" if path.endswith(".png") else "JPEG"))

    def json(self, path: str, value: Any) -> None:
        self.text(path, json.dumps(value))

    def lines(self, path: str, values: Iterable[Any]) -> None:
        """JSON lines."""
        self.text(path, "".join(json.dumps(value) + "\n" for value in values))

    def text(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="")


def encoded(scene: Scene, format: str) -> bytes:
    """A scene as the bytes of an image file; JPEGs of high quality, as small things show its artefacts most."""
    buffer = BytesIO()
    draw(scene).save(buffer, format, **({"quality": 95, "subsampling": 0} if format == "JPEG" else {}))
    return buffer.getvalue()


GQA_TYPES = {
    "exist": ("verify", "obj"),
    "exist_size": ("verify", "attr"),
    "exist_place": ("verify", "rel"),
    "colour": ("query", "attr"),
    "shape": ("query", "cat"),
    "size": ("query", "attr"),
    "place": ("query", "global"),
    "choose_colour": ("choose", "attr"),
    "choose_shape": ("choose", "cat"),
    "both": ("logical", "obj"),
    "either": ("logical", "obj"),
    "compare": ("compare", "obj"),
}
"""Structural and semantic type."""


def gqa_program(item: Item) -> dict[str, Any]:
    """GQA's ``types``, ``groups`` and program (``semantic``, ``semanticStr``) of a question."""
    type, words = item.question.type, item.question.text.rstrip("?").split()
    structural, semantic = GQA_TYPES[type]
    attribute = type.rpartition("_")[2]
    names = {word: word for word in (*SHAPES, *COLOURS)} | {plural: shape for shape, plural in PLURALS.items()}
    named = [names[word] for word in words if word in names]
    steps: list[tuple[str, list[int], str]] = [("select", [], f"{named[0]} (-)")]
    if structural == "query":
        steps.append(("query", [0], "name" if type == "shape" else attribute))
    elif structural == "choose":
        steps.append((f"choose {'name' if type == 'choose_shape' else attribute}", [0], f"{words[-3]}|{words[-1]}"))
    elif type.startswith("exist"):
        filters = {"colour": named[0] if len(named) == 2 else None, "size": words[3], "place": words[-1]}
        steps = [("select", [], f"{named[-1]} (-)")]
        kind = "colour" if type == "exist" else attribute
        if filters[kind]:
            steps.append((f"filter {kind}", [0], filters[kind]))
        steps.append(("exist", [len(steps) - 1], "?"))
    else:
        steps += [("exist", [0], "?"), ("select", [], f"{named[-1]} (-)"), ("exist", [2], "?")]
        steps += [({"both": "and", "either": "or", "compare": "more"}[type], [1, 3], "")]
    return {
        "types": {"structural": structural, "semantic": semantic, "detailed": type},
        "groups": {"global": attribute if structural in ("query", "choose") else None, "local": f"{len(words):02d}-{named[0]}"},
        "semantic": [{"operation": op, "dependencies": after, "argument": argument} for op, after, argument in steps],
        "semanticStr": "->".join(f"{op}: {argument} {after or ''}".strip() for op, after, argument in steps),
    }


def answer_type(answer: str) -> str:
    """The kind of answer, as VQAv2 and VizWiz call it."""
    return "yes/no" if answer in ("yes", "no") else "number" if answer.isdecimal() else "other"


def human_answers(question: Question, rng: random.Random) -> list[dict[str, str]]:
    """What ten people say: most the right answer, at least one something else, in other words or wrong."""
    answer = question.answer
    others = [other for other in ALL_ANSWERS[question.type] if other != answer]
    if answer == UNANSWERABLE:
        others = [*others, "unsuitable"]
    elif answer.isdecimal():
        others.append(NUMBERS[int(answer)])
    elif answer not in ("yes", "no"):
        others.append(f"the {answer}")
    said = [answer] * rng.randint(6, 9)
    said += rng.choices(others, k=10 - len(said))
    rng.shuffle(said)
    sure = ("yes", "yes", "yes", "maybe", "no")
    return [{"answer": each, "answer_confidence": rng.choice(sure)} for each in said]
