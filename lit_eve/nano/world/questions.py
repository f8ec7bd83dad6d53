"""The questions of the miniature world, with answers that cannot be guessed.

Two rules see to that: a question's words tell nothing (colours and shapes are interchangeable; "is there a red cross?" is
asked where there are red shapes and crosses), and a `Ledger` admits a question only while its answer is not ahead of the other
answers, over all questions of its type and over all questions of the very same words.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from lit_eve.nano.world.scenes import COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Scene, Thing

PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
YES_NO = ("yes", "no")
ANSWERS: dict[str, tuple[str, ...]] = {
    "exist": YES_NO,
    "count": ("1", "2", "3", "4"),
    "count_by_attribute": ("0", "1", "2", "3"),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "relation": ("left", "right", "above", "below"),
    "place": PLACES,
}
"""The answers to each type of question that validation and test sets ask."""
TYPES = tuple(ANSWERS)
MORE_ANSWERS: dict[str, tuple[str, ...]] = {
    "exist_pair": YES_NO,
    "verify_count": YES_NO,
    "both": YES_NO,
    "either": YES_NO,
    "compare": YES_NO,
    "exist_size": YES_NO,
    "exist_place": YES_NO,
    "choose_colour": tuple(COLOURS),
    "choose_shape": SHAPES,
}
"""What training sets and the miniature benchmarks ask besides."""
ALL_ANSWERS = ANSWERS | MORE_ANSWERS
FAMILIES = (
    (
        *("exist", "count", "count_by_attribute", "exist_pair", "exist_size", "exist_place"),
        *("verify_count", "both", "either", "compare"),
    ),
    ("colour", "shape", "size", "relation", "place", "choose_colour", "choose_shape"),
)
"""The second family's questions speak of things that are there, which would answer those of the first."""
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}


class Question(NamedTuple):
    """A question about a scene, its type (a key of `ALL_ANSWERS`) and its answer (one of the type's)."""

    type: str
    text: str
    answer: str


def questions(scene: Scene, type: str) -> Iterator[Question]:
    """Every question of one type that this scene answers without doubt."""
    things = scene.things
    if type == "exist":
        colours, shapes = {t.colour for t in things}, {t.shape for t in things}
        for colour in COLOURS:
            yield Question(type, f"is there a {colour} shape?", _yes(colour in colours))
        for shape in SHAPES:
            yield Question(type, f"is there a {shape}?", _yes(shape in shapes))
        for colour, shape, count in pairs_of(things):
            yield Question(type, f"is there a {colour} {shape}?", _yes(count))
    elif type == "exist_pair":  # only where knowing colours and shapes is not enough
        pairs = list(pairs_of(things))
        if not all(count for _, _, count in pairs):
            yield from (Question(type, f"is there a {colour} {shape}?", _yes(count)) for colour, shape, count in pairs)
    elif type == "count":
        yield Question(type, "how many shapes are there?", str(len(things)))
    elif type == "count_by_attribute":
        for name, count in counts_of(things):
            if count <= 3:
                yield Question(type, f"how many {name} are there?", str(count))
    elif type == "relation":
        yield from _relations(scene)
    elif type in ("exist_size", "exist_place"):
        yield from _exist_with(scene, type)
    elif type in FAMILIES[0]:
        yield from _about_all(things, type)
    elif type in ("colour", "shape"):
        for name, thing in _unique(things, "shape" if type == "colour" else "colour"):
            words = "what colour is" if type == "colour" else "what is"
            yield Question(type, f"{words} the {name}?", getattr(thing, type))
    else:
        for attribute in ("shape", "colour"):
            for name, thing in _unique(things, attribute):
                yield from _about_one(scene, type, attribute, name, thing)


def _about_one(scene: Scene, type: str, attribute: str, name: str, thing: Thing) -> Iterator[Question]:
    """Questions about a thing that one attribute names."""
    if type == "size":
        yield Question(type, f"how large is the {name}?", thing.size)
    elif type == "place":
        yield Question(type, f"where is the {name}?", scene.place(thing))
    elif type.removeprefix("choose_") != attribute:
        asked = type.removeprefix("choose_")
        article = "a " if asked == "shape" else ""
        true, false = getattr(thing, asked), _other_value(scene, asked, thing)
        for one, other in ((true, false), (false, true)):
            yield Question(type, f"is the {name} {article}{one} or {article}{other}?", true)


def _exist_with(scene: Scene, type: str) -> Iterator[Question]:
    """Whether a colour or shape that is there occurs in one size, or in one row or column."""
    for attribute in ("colour", "shape"):
        for value in sorted({getattr(thing, attribute) for thing in scene.things}):
            name = value if attribute == "shape" else f"{value} shape"
            those = [thing for thing in scene.things if getattr(thing, attribute) == value]
            if type == "exist_size":
                for size in SIZES:
                    yield Question(type, f"is there a {size} {name}?", _yes(any(thing.size == size for thing in those)))
            else:
                for words, length, axis in ((ROWS, scene.rows, "row"), (COLUMNS, scene.columns, "column")):
                    for at in range(length):
                        there = any(getattr(thing, axis) == at for thing in those)
                        yield Question(type, f"is there a {name} in {words[at]}?", _yes(there))


def _about_all(things: Sequence[Thing], type: str) -> Iterator[Question]:
    """Yes and no about counts: one count; two that are compared; two that must both, or either, be above zero."""
    counts = dict(counts_of(things))
    if type == "verify_count":
        for name, count in {"shapes": len(things), **counts}.items():
            for guess in range(max(2, count - 1), min(count + 1, 4) + 1):
                yield Question(type, f"are there {guess} {name}?", _yes(guess == count))
    for names in (map(PLURALS.__getitem__, SHAPES), (f"{colour} shapes" for colour in COLOURS)):
        for one, other in combinations(names, 2):
            if type == "compare" and counts[one] != counts[other]:
                for more, fewer in ((one, other), (other, one)):
                    yield Question(type, f"are there more {more} than {fewer}?", _yes(counts[more] > counts[fewer]))
            elif type == "both" and (counts[one] or counts[other]):
                yield Question(type, f"are there {one} and {other}?", _yes(counts[one] and counts[other]))
            elif type == "either":
                yield Question(type, f"are there {one} or {other}?", _yes(counts[one] or counts[other]))


def counts_of(things: Sequence[Thing]) -> Iterator[tuple[str, int]]:
    """How many things have each colour, shape and size: ("red shapes", 2), ("crosses", 0)."""
    for attribute, values in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES)):
        present = Counter(getattr(thing, attribute) for thing in things)
        for value in values:
            yield PLURALS[value] if attribute == "shape" else f"{value} shapes", present[value]


def _relations(scene: Scene) -> Iterator[Question]:
    """Two things alone, in one row or one column: each named by its colour or its shape."""
    if len(scene.things) != 2:
        return
    colours = {thing: name for name, thing in _unique(scene.things, "colour")}
    shapes = {thing: name for name, thing in _unique(scene.things, "shape")}
    first, second = scene.things
    for thing, other in ((first, second), (second, first)):
        if thing.row == other.row:
            answer = "left" if thing.column < other.column else "right"
        elif thing.column == other.column:
            answer = "above" if thing.row < other.row else "below"
        else:
            return
        for name, reference in ((colours.get(thing), shapes.get(other)), (shapes.get(thing), colours.get(other))):
            if name and reference:
                yield Question("relation", f"seen from the {reference}, where is the {name}?", answer)


def pairs_of(things: Sequence[Thing]) -> Iterator[tuple[str, str, int]]:
    """How many there are of each colour and shape that are both there: ("red", "circle", 1), ("red", "cross", 0)."""
    found = Counter((thing.colour, thing.shape) for thing in things)
    for colour in sorted({thing.colour for thing in things}):
        for shape in sorted({thing.shape for thing in things}):
            yield colour, shape, found[colour, shape]


def _unique(things: Iterable[Thing], attribute: str) -> Iterator[tuple[str, Thing]]:
    """The things that one attribute alone names: ("circle", thing), ("red shape", thing)."""
    values = Counter(getattr(thing, attribute) for thing in things)
    for thing in things:
        value = getattr(thing, attribute)
        if values[value] == 1:
            yield (value if attribute == "shape" else f"{value} shape"), thing


def _other_value(scene: Scene, attribute: str, thing: Thing) -> str:
    """Something that a thing is not, if possible something that another thing is: ruling it out takes a look at the thing."""
    values = {"colour": tuple(COLOURS), "shape": SHAPES, "size": tuple(SIZES)}[attribute]
    own = getattr(thing, attribute)
    present = [value for value in values if value != own and any(getattr(t, attribute) == value for t in scene.things)]
    others = present or [value for value in values if value != own]
    return others[(thing.row + thing.column + len(scene.things)) % len(others)]


def _yes(truth: object) -> str:
    return "yes" if truth else "no"


class Ledger:
    """Keeps the answers of a set of questions balanced while the set is made.

    Args:
        slack: how far an answer may run ahead of the rarest answer of its type, and of its very question. 1 is the
            strictest; more lets more scenes pass.
        weights: how often each type is to be asked, in proportion; 1 for those of `TYPES` that are not named, 0 for others.
    """

    def __init__(self, slack: int = 1, weights: Mapping[str, float] | None = None) -> None:
        self.slack = slack
        weights = dict.fromkeys(TYPES, 1.0) | dict(weights or {})
        self.weights = {type: weight for type, weight in weights.items() if weight}
        self.asked: dict[str, float] = dict.fromkeys(self.weights, 0.0)
        """Questions of each type, divided by its weight."""
        self._answers: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def admits(self, question: Question) -> bool:
        return self._is_level(question.text, question) and self._is_level(question.type, question)

    def _is_level(self, key: str, question: Question) -> bool:
        counts = self._answers[key]
        return counts[question.answer] < self.slack + min(map(counts.__getitem__, ALL_ANSWERS[question.type]))

    def add(self, question: Question) -> None:
        self.asked[question.type] += 1 / self.weights[question.type]
        for key in (question.type, question.text):
            self._answers[key][question.answer] += 1


def ask(scene: Scene, rng: random.Random, ledger: Ledger, turns: int = 1) -> list[Question]:
    """Up to ``turns`` different questions, of the ledger's types that were asked least so far.

    All are of one family, so that an earlier turn gives no later answer away. Returns fewer (or none) where the ledger admits
    no question: skip such a scene.
    """
    asked: list[Question] = []
    candidates: dict[str, list[Question]] = {}
    types = tuple(ledger.asked)
    while len(asked) < turns:
        known = {question.text for question in asked}
        for type in sorted(types, key=lambda name: (ledger.asked[name], rng.random())):
            if type not in candidates:
                candidates[type] = list(questions(scene, type))
                rng.shuffle(candidates[type])
            new = (question for question in candidates[type] if question.text not in known)
            question = next(filter(ledger.admits, new), None)
            if question is not None:
                break
        else:
            break
        candidates[type].remove(question)
        ledger.add(question)
        asked.append(question)
        family = next(family for family in FAMILIES if question.type in family)
        types = tuple(type for type in types if type in family)
    rng.shuffle(asked)
    return asked
