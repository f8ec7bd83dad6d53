"""The words of the miniature world: captions, facts, maps of words, chats."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lit_eve.nano.world.prompts import HINT, UNANSWERABLE, Turn
from lit_eve.nano.world.questions import ALL_ANSWERS
from lit_eve.nano.world.scenes import COLOURS, SHAPES, SIZES, Scene, Thing

USER, ASSISTANT, END = "USER:", "ASSISTANT:", "</s>"  # the chat format
PLACE_LAST = 0.4  # share of captions that name the place behind the thing


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


def glyph(size: str, colour: str, shape: str) -> str:
    """One word that stands for a kind of thing, as an emoji does: "small-red-circle"."""
    return f"{size}-{colour}-{shape}"


def glyph_rows(scene: Scene) -> list[list[str]]:
    """A glyph or a dot per cell, row by row."""
    things = {(thing.row, thing.column): glyph(thing.size, thing.colour, thing.shape) for thing in scene.things}
    return [[things.get((row, column), ".") for column in range(scene.columns)] for row in range(scene.rows)]


def glyph_map(scene: Scene) -> str:
    """The scene as text: its cells, a semicolon after each row. Words in the order of an image's tokens."""
    return " ".join(" ".join(row) + ";" for row in glyph_rows(scene))


def facts(scene: Scene, rng: random.Random) -> str:
    """The scene in terse words, things and their attributes in any order: "large red row-1 column-3 circle; ..."."""
    phrases = []
    for thing in scene.things:
        words = [thing.size, thing.colour, thing.shape, scene.place(thing)]
        rng.shuffle(words)
        phrases.append(" ".join(words))
    rng.shuffle(phrases)
    return "; ".join(phrases)


def chat(view: str, turns: Sequence[Turn]) -> str:
    """Questions and answers about what stands in front of the first question, in the words of the chat template."""
    text = "".join(f"{USER} {question} {ASSISTANT} {answer}{END}" for question, answer in turns)
    return text.replace(f"{USER} ", f"{USER} {view}\n", 1)


def vocabulary() -> list[str]:
    """Every word of captions, questions, answers and maps, sorted."""
    texts = [word for answers in ALL_ANSWERS.values() for word in answers]
    texts += [HINT.removesuffix("."), UNANSWERABLE]
    texts += ["a the is there shape shapes how many are what colour where large seen from in and or more than"]
    texts += [glyph(size, colour, shape) for size in SIZES for colour in COLOURS for shape in SHAPES]
    return sorted({word for text in texts for word in text.split()})
