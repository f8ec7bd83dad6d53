"""How questions are put: bare, or in the forms of the benchmarks, each with a sentence that says which form an answer has.

As in LLaVA's instruction data, which EVE's third stage is made of, the sentence stands behind the first question of a
conversation and holds for all that follow, but for multiple choice, where every question brings its options and the sentence.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from lit_eve.nano.questions import ALL_ANSWERS, FAMILIES, Question
from lit_eve.nano.scenes import COLOURS, SHAPES, SIZES, Scene

SHORT = "Answer the question using a single word or phrase."
UNSURE = "When the provided information is insufficient, respond with 'Unanswerable'."
LETTER = "Answer with the option's letter from the given choices directly."
OCR = "Reference OCR token:"
CONTEXT = "Context:"
FORMATS = (f"\n{SHORT}", f"\n{UNSURE}", f"\n{LETTER}", f"\n{OCR}", CONTEXT)
LETTERS = "ABCD"
UNANSWERABLE = "unanswerable"

FORMS = {"bare": 0.49, "short": 0.23, "letter": 0.2, "unsure": 0.04, "ocr": 0.04}
"""Shares of the forms among the conversations of the third stage."""
LETTER_TYPES = ("exist", "size", "count", "shape", "count_by_attribute")
LETTER_TURNS = 5  # questions of a conversation in multiple choice: their options make them long
UNSURE_SHARE = 0.4  # of the questions of a conversation in which they may be unanswerable
HINT = "this is an image of shapes."
HINT_SHARE = 0.2  # of the conversations in multiple choice begin with a hint


class Turn(NamedTuple):
    """What the user says, and the answer."""

    text: str
    answer: str


def short(text: str) -> str:
    """As VQAv2, GQA, POPE and MME ask."""
    return f"{text}\n{SHORT}"


def unsure(text: str) -> str:
    """As VizWiz asks."""
    return f"{text}\n{UNSURE}\n{SHORT}"


def with_ocr(text: str, tokens: Sequence[str]) -> str:
    """As TextVQA asks: with the words that were read in the image."""
    return f"{text}\n{OCR} {', '.join(tokens)}\n{SHORT}"


def with_options(text: str, options: Sequence[str]) -> str:
    """As ScienceQA, MMBench and SEED-Bench ask."""
    lines = "".join(f"{letter}. {option}\n" for letter, option in zip(LETTERS, options, strict=False))
    return f"{text}\n{lines}{LETTER}"


def options_of(question: Question, rng: random.Random) -> list[str]:
    """At most four answers of the question's type in their usual order, neighbours where there are more; two in either order.

    With four options in any order a model of this size stays at chance: finding a word among them, which has nothing to do
    with images, takes more training than all the rest.
    """
    values = ALL_ANSWERS[question.type]
    if len(values) <= len(LETTERS):
        return turned(values, rng.randrange(2) if len(values) == 2 else 0)
    start = values.index(question.answer) - rng.randrange(len(LETTERS))
    return [values[(start + index) % len(values)] for index in range(len(LETTERS))]


def turned(options: Sequence[str], passes: int) -> list[str]:
    """The options after so many of MMBench's circular passes: in each the last becomes the first."""
    return [*options[len(options) - passes :], *options[: len(options) - passes]]


def random_words(rng: random.Random) -> list[str]:
    """Up to three words that say nothing about an image."""
    return rng.sample((*COLOURS, *SHAPES, *SIZES), rng.randrange(4))


def unanswerable(scene: Scene) -> list[Question]:
    """Questions about colour, shape, size or place of something that is not there."""
    shapes = [shape for shape in SHAPES if all(thing.shape != shape for thing in scene.things)]
    colours = [f"{colour} shape" for colour in COLOURS if all(thing.colour != colour for thing in scene.things)]
    texts = [("colour", f"what colour is the {name}?") for name in shapes]
    texts += [("shape", f"what is the {name}?") for name in colours]
    for name in (*shapes, *colours):
        texts += [("size", f"how large is the {name}?"), ("place", f"where is the {name}?")]
    return [Question(type, text, UNANSWERABLE) for type, text in texts]


def bare(asked: Sequence[Question]) -> list[Turn]:
    """As MM-Vet asks."""
    return [Turn(question.text, question.answer) for question in asked]


def conversation(scene: Scene, asked: Sequence[Question], rng: random.Random) -> list[Turn]:
    """The questions, in a form drawn from `FORMS`; in that of VizWiz, unanswerable ones take the place of some."""
    form = rng.choices(list(FORMS), list(FORMS.values()))[0]
    several = [question for question in asked if question.type in LETTER_TYPES]
    if form == "letter" and several:
        turns = []
        for question in several[:LETTER_TURNS]:
            options = options_of(question, rng)
            turns.append(Turn(with_options(question.text, options), LETTERS[options.index(question.answer)]))
        if rng.random() < HINT_SHARE:
            hint = rng.choice((HINT, f"{CONTEXT} {HINT}"))
            turns[0] = turns[0]._replace(text=f"{hint}\n{turns[0].text}")
        return turns
    if form == "unsure" and asked[0].type in FAMILIES[1]:  # the others ask what is there
        strange = unanswerable(scene)
        asked = [rng.choice(strange) if rng.random() < UNSURE_SHARE else question for question in asked]
    turns = bare(asked)
    put = {"bare": str, "letter": str, "short": short, "unsure": unsure, "ocr": lambda text: with_ocr(text, random_words(rng))}[
        form
    ]
    return [turns[0]._replace(text=put(turns[0].text)), *turns[1:]]
