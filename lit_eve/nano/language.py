"""The words of the miniature world: captions, questions with balanced answers, and text documents.

A question is only worth asking when its answer cannot be guessed. Two rules see to that: a question's words tell nothing
(colours and shapes are interchangeable; "is there a red cross?" is asked where there are red shapes and crosses), and a
`Ledger` admits a question only while its answer is not ahead of the other answers, over all questions of its type and over all
questions of the very same words.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lit_eve.nano.scenes import COLOURS, COLUMNS, ROWS, SHAPES, SIZES, Scene, Thing

PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
ANSWERS: dict[str, tuple[str, ...]] = {
    "exist": ("yes", "no"),
    "count": ("1", "2", "3", "4"),
    "count_by_attribute": ("0", "1", "2", "3"),
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "relation": ("left", "right", "above", "below"),
    "place": PLACES,
}
TYPES = tuple(ANSWERS)
USER, ASSISTANT, END = "USER:", "ASSISTANT:", "</s>"  # the chat format
FAMILIES = (("exist", "count", "count_by_attribute"), ("colour", "shape", "size", "relation", "place"))
"""The second family's questions speak of things that are there, which would answer those of the first."""
PLACE_LAST = 0.4  # share of captions that name the place behind the thing
FACTS = 0.65  # share of facts among the documents without questions; the others are captions
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}


class Question(NamedTuple):
    """A question about a scene, its type (a key of `ANSWERS`) and its answer (one of the type's)."""

    type: str
    text: str
    answer: str


def describe(thing: Thing) -> str:
    return f"{thing.size} {thing.colour} {thing.shape}"


def caption(scene: Scene, rng: random.Random | None = None) -> str:
    """All things in reading order: "row-1 column-1 a small red circle, row-2 column-3 a large blue cross".

    With ``rng`` the place is named behind each thing in some captions: "a small red circle row-1 column-1, ...". In the usual
    order a model finds the next thing by walking through the image; in this one it must find the place of a thing.
    """
    place_last = rng is not None and rng.random() < PLACE_LAST
    phrases = ((scene.place(thing), f"a {describe(thing)}") for thing in scene.things)
    return ", ".join(f"{thing} {place}" if place_last else f"{place} {thing}" for place, thing in phrases)


def questions(scene: Scene, type: str) -> Iterator[Question]:
    """Every question of one type that this scene answers without doubt."""
    things = scene.things
    if type == "exist":
        colours, shapes = {t.colour for t in things}, {t.shape for t in things}
        pairs = {(t.colour, t.shape) for t in things}
        for colour in COLOURS:
            yield Question(type, f"is there a {colour} shape?", _yes(colour in colours))
        for shape in SHAPES:
            yield Question(type, f"is there a {shape}?", _yes(shape in shapes))
        for colour in sorted(colours):
            for shape in sorted(shapes):
                yield Question(type, f"is there a {colour} {shape}?", _yes((colour, shape) in pairs))
    elif type == "count":
        yield Question(type, "how many shapes are there?", str(len(things)))
    elif type == "count_by_attribute":
        for attribute, values in (("colour", COLOURS), ("shape", SHAPES), ("size", SIZES)):
            present = Counter(getattr(thing, attribute) for thing in things)
            for value in values:
                if present[value] <= 3:
                    name = PLURALS[value] if attribute == "shape" else f"{value} shapes"
                    yield Question(type, f"how many {name} are there?", str(present[value]))
    elif type == "relation":
        yield from _relations(scene)
    else:
        for name, thing in _unique(things, "shape"):
            if type == "colour":
                yield Question(type, f"what colour is the {name}?", thing.colour)
        for name, thing in _unique(things, "colour"):
            if type == "shape":
                yield Question(type, f"what is the {name}?", thing.shape)
        for attribute in ("shape", "colour"):
            for name, thing in _unique(things, attribute):
                if type == "size":
                    yield Question(type, f"how large is the {name}?", thing.size)
                elif type == "place":
                    yield Question(type, f"where is the {name}?", scene.place(thing))


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


def _unique(things: Iterable[Thing], attribute: str) -> Iterator[tuple[str, Thing]]:
    """The things that one attribute alone names: ("circle", thing), ("red shape", thing)."""
    values = Counter(getattr(thing, attribute) for thing in things)
    for thing in things:
        value = getattr(thing, attribute)
        if values[value] == 1:
            yield (value if attribute == "shape" else f"{value} shape"), thing


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


class Ledger:
    """Keeps the answers of a set of questions balanced while the set is made.

    Args:
        slack: how far an answer may run ahead of the rarest answer of its type, and of its very question. 1 is the
            strictest; more lets more scenes pass.
        weights: how often each type is to be asked, in proportion; 1 for those that are not named.
    """

    def __init__(self, slack: int = 1, weights: Mapping[str, float] | None = None) -> None:
        self.slack = slack
        self.weights = dict.fromkeys(TYPES, 1.0) | dict(weights or {})
        self.asked: dict[str, float] = dict.fromkeys(TYPES, 0.0)
        """Questions of each type, divided by its weight."""
        self._answers: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def admits(self, question: Question) -> bool:
        return self._is_level(question.text, question) and self._is_level(question.type, question)

    def _is_level(self, key: str, question: Question) -> bool:
        counts = self._answers[key]
        return counts[question.answer] < self.slack + min(map(counts.__getitem__, ANSWERS[question.type]))

    def add(self, question: Question) -> None:
        self.asked[question.type] += 1 / self.weights[question.type]
        for key in (question.type, question.text):
            self._answers[key][question.answer] += 1


def ask(scene: Scene, rng: random.Random, ledger: Ledger, turns: int = 1) -> list[Question]:
    """Up to ``turns`` different questions, of the types asked least so far.

    All are of one family, so that an earlier turn gives no later answer away. Returns fewer (or none) where the ledger admits
    no question: skip such a scene.
    """
    asked: list[Question] = []
    candidates: dict[str, list[Question]] = {}
    types = TYPES
    while len(asked) < turns:
        for type in sorted(types, key=lambda name: (ledger.asked[name], rng.random())):
            if type not in candidates:
                candidates[type] = list(questions(scene, type))
                rng.shuffle(candidates[type])
            question = next(filter(ledger.admits, candidates[type]), None)
            if question is not None:
                break
        else:
            break
        candidates[type].remove(question)
        ledger.add(question)
        asked.append(question)
        types = next(family for family in FAMILIES if question.type in family)
    rng.shuffle(asked)
    return asked


def glyph(size: str, colour: str, shape: str) -> str:
    """One word that stands for a kind of thing, as an emoji does: "small-red-circle"."""
    return f"{size}-{colour}-{shape}"


def glyph_map(scene: Scene) -> str:
    """The scene as text: a glyph or a dot per cell, a semicolon after each row. Words in the order of an image's tokens."""
    things = {(thing.row, thing.column): glyph(thing.size, thing.colour, thing.shape) for thing in scene.things}
    rows = ([things.get((row, column), ".") for column in range(scene.columns)] for row in range(scene.rows))
    return " ".join(" ".join(row) + ";" for row in rows)


def facts(scene: Scene, rng: random.Random) -> str:
    """The scene in terse words, things and their attributes in any order: "large red row-1 column-3 circle; ..."."""
    phrases = []
    for thing in scene.things:
        words = [thing.size, thing.colour, thing.shape, scene.place(thing)]
        rng.shuffle(words)
        phrases.append(" ".join(words))
    rng.shuffle(phrases)
    return "; ".join(phrases)


def chat(view: str, asked: Sequence[Question]) -> str:
    """Questions and answers about what stands in front of the first question, in the words of the chat template."""
    turns = "".join(f"{USER} {question.text} {ASSISTANT} {question.answer}{END}" for question in asked)
    return turns.replace(f"{USER} ", f"{USER} {view}\n", 1)


def document(scene: Scene, asked: Sequence[Question], rng: random.Random) -> str:
    """What the language model reads before it ever sees an image: a map where an image would be, then words about it.

    The words are a chat where there are questions, otherwise facts or a caption. Facts are the densest lesson in which
    attributes belong together: from the first word on, every word asks for another attribute of the same thing. Without them
    the model keeps guessing an attribute of any thing.
    """
    view = glyph_map(scene)
    if asked:
        return chat(view, asked)
    return f"{view}\n{facts(scene, rng)}\n" if rng.random() < FACTS else f"{view} {caption(scene, rng)}\n"


def vocabulary() -> list[str]:
    """Every word of captions, questions, answers and maps, sorted."""
    texts = [word for answers in ANSWERS.values() for word in answers]
    texts += [*PLURALS.values(), "a the is there shape shapes how many are what colour where large seen from"]
    texts += [glyph(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES]
    return sorted({word for text in texts for word in text.split()})
