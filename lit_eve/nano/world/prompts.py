"""How questions are put: bare, or in the forms of the benchmarks, each with a sentence that says which form an answer has.

As in LLaVA's instruction data, which EVE's third stage is made of, the sentence stands behind the first question of a
conversation and holds for all that follow, but for multiple choice, where every question brings its options and the sentence.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lit_eve.nano.world.questions import ALL_ANSWERS, FAMILIES, Question
from lit_eve.nano.world.scenes import COLOURS, SHAPES, SIZES, Scene

SHORT = "Answer the question using a single word or phrase."
UNSURE = "When the provided information is insufficient, respond with 'Unanswerable'."
LETTER = "Answer with the option's letter from the given choices directly."
OCR = "Reference OCR token:"
CONTEXT = "Context:"
FORMATS = (f"\n{SHORT}", f"\n{UNSURE}", f"\n{LETTER}", f"\n{OCR}", CONTEXT)
LETTERS = "ABCD"
UNANSWERABLE = "unanswerable"

FORMS = {"bare": 0.38, "short": 0.28, "letter": 0.17, "text": 0.05, "unsure": 0.04, "ocr": 0.08}
"""Shares of the forms among the conversations of the third stage."""
TEXT_FORMS = {"bare": 0.7, "short": 0.3}
"""The same among the conversations that the language model reads: it knows the short form before the images come."""
LETTER_TYPES = ("exist", "size", "count", "shape", "count_by_attribute")
"""In multiple choice answered by a letter, as ScienceQA and SEED-Bench want it."""
TEXT_TYPES = ("colour", "relation", "place", "choose_colour", "choose_shape")
"""In multiple choice answered by the option's text, which MMBench's rules read as well; their options stand in any order."""
OPTIONS_TURNS = 5  # questions of a conversation in multiple choice: their options make them long
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
    """Answers of the question's type, the right one among them.

    Those of `TEXT_TYPES` stand in any order, at most four, or the two that the question names. With letters for them a model of
    this size stays at chance (docs/nano.md): the others are all there, in their usual order; two in either order.
    """
    values = ALL_ANSWERS[question.type]
    if question.type in TEXT_TYPES:
        named = [value for value in values if value in question.text.rstrip("?").split()]
        others = [value for value in (named if len(named) > 1 else values) if value != question.answer]
        options = [question.answer, *rng.sample(others, min(len(others), len(LETTERS) - 1))]
        return rng.sample(options, len(options))
    return turned(values, rng.randrange(2) if len(values) == 2 else 0)


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


def multiple_choice(asked: Sequence[Question], rng: random.Random, by_letter: bool) -> list[Turn]:
    """Those of the questions that are asked with options; before the first of some conversations stands a hint."""
    turns = []
    for question in [question for question in asked if question.type in (LETTER_TYPES if by_letter else TEXT_TYPES)]:
        options = options_of(question, rng)
        answer = LETTERS[options.index(question.answer)] if by_letter else question.answer
        turns.append(Turn(with_options(question.text, options), answer))
    if turns and rng.random() < HINT_SHARE:
        hint = rng.choice((HINT, f"{CONTEXT} {HINT}"))
        turns[0] = turns[0]._replace(text=f"{hint}\n{turns[0].text}")
    return turns[:OPTIONS_TURNS]


def conversation(scene: Scene, asked: Sequence[Question], rng: random.Random, forms: Mapping[str, float] = FORMS) -> list[Turn]:
    """The questions, in a form drawn from ``forms``; in that of VizWiz, unanswerable ones take the place of some."""
    form = rng.choices(list(forms), list(forms.values()))[0]
    if form in ("letter", "text") and (turns := multiple_choice(asked, rng, by_letter=form == "letter")):
        return turns
    if form == "unsure" and asked[0].type in FAMILIES[1]:  # the others ask what is there
        strange = unanswerable(scene)
        asked = [rng.choice(strange) if rng.random() < UNSURE_SHARE else question for question in asked]
    turns = bare(asked)
    if put := {"short": short, "unsure": unsure, "ocr": lambda text: with_ocr(text, random_words(rng))}.get(form):
        turns[0] = turns[0]._replace(text=put(turns[0].text))
    return turns
