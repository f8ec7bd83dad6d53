"""The forms of the benchmarks' prompts, and the conversations that teach them."""

import random
from collections import Counter
from itertools import islice

import pytest

from lit_eve.nano.world.prompts import (
    FORMS,
    LETTER,
    LETTER_TYPES,
    LETTERS,
    OPTIONS_TURNS,
    SHORT,
    TEXT_TYPES,
    UNANSWERABLE,
    bare,
    conversation,
    options_of,
    short,
    turned,
    unanswerable,
    unsure,
    with_ocr,
    with_options,
)
from lit_eve.nano.world.questions import ALL_ANSWERS, FAMILIES, Ledger, Question, ask
from lit_eve.nano.world.scenes import SHAPES, Scene, Thing, scenes

SCENE = Scene(64, 32, (255, 255, 255), (Thing("circle", "red", "small", row=0, column=0),))
COLOUR = Question("colour", "what colour is the circle?", "red")


def conversations(count: int):
    """(form, scene, asked, turns), the form as it shows in the first turn."""
    rng, ledger = random.Random(0), Ledger(slack=30, weights=dict.fromkeys(ALL_ANSWERS, 1.0))
    for scene in islice(scenes("forms", 0), count):
        if asked := ask(scene, rng, ledger, 6):
            turns = conversation(scene, asked, rng)
            first = turns[0].text
            marks = {"letter": LETTER, "unsure": "Unanswerable", "ocr": "OCR", "short": SHORT, "bare": ""}
            form = next(form for form, mark in marks.items() if mark in first)
            yield "text" if form == "letter" and turns[0].answer not in LETTERS else form, scene, asked, turns


def test_prompts_are_the_official_ones():
    assert short("how?") == "how?\nAnswer the question using a single word or phrase."
    assert unsure("how?") == (
        "how?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )
    assert with_ocr("how?", ["red", "cross"]) == (
        "how?\nReference OCR token: red, cross\nAnswer the question using a single word or phrase."
    )
    assert with_ocr("how?", []) == "how?\nReference OCR token: \nAnswer the question using a single word or phrase."
    assert with_options("how?", ["red", "blue"]) == (
        "how?\nA. red\nB. blue\nAnswer with the option's letter from the given choices directly."
    )


def test_options_that_are_answered_by_a_letter_stand_in_their_usual_order():
    rng = random.Random(0)
    assert options_of(Question("count", "how many shapes are there?", "3"), rng) == ["1", "2", "3", "4"]
    either = {tuple(options_of(Question("exist", "is there a circle?", "no"), rng)) for _ in range(20)}
    assert either == {("yes", "no"), ("no", "yes")}


def test_options_that_are_answered_by_their_text_stand_in_any_order():
    rng, places, shown = random.Random(0), Counter(), set()
    for _ in range(400):
        options = options_of(COLOUR, rng)
        assert len(set(options)) == 4 and set(options) <= set(ALL_ANSWERS["colour"])
        places[options.index("red")] += 1
        shown.add(tuple(options))
    assert set(places) == {0, 1, 2, 3} and all(60 < count < 140 for count in places.values()) and len(shown) > 100
    either = Question("choose_colour", "is the circle red or blue?", "red")
    assert {tuple(options_of(either, rng)) for _ in range(20)} == {("red", "blue"), ("blue", "red")}


def test_options_turn_as_in_circular_passes():
    assert [turned("ABCD", passes) for passes in range(4)] == [list("ABCD"), list("DABC"), list("CDAB"), list("BCDA")]


def test_what_cannot_be_answered_is_about_what_is_not_there():
    questions = unanswerable(SCENE)
    assert {question.answer for question in questions} == {UNANSWERABLE}
    texts = {question.text for question in questions}
    assert {"what colour is the cross?", "what is the blue shape?", "where is the square?"} <= texts
    assert not any("circle" in text or "red" in text for text in texts)


def test_forms_come_in_their_shares():
    forms = Counter(form for form, *_ in conversations(3000))
    for form, share in FORMS.items():
        if form != "unsure":  # only in conversations about single things
            assert forms[form] / forms.total() == pytest.approx(share, abs=0.06), form
    assert forms["unsure"] > 0.02 * forms.total()


def test_the_sentence_stands_behind_the_first_question_alone():
    for form, _, asked, turns in conversations(400):
        if form in ("letter", "text"):
            assert len(turns) <= OPTIONS_TURNS and all(turn.text.endswith(LETTER) for turn in turns)
        else:
            assert len(turns) == len(asked) and not any("\n" in turn.text for turn in turns[1:])
        if form == "bare":
            assert turns == bare(asked)


def test_with_options_the_answer_is_the_right_letter_or_the_right_text():
    letters, places = Counter(), Counter()
    for form, _, asked, turns in conversations(12000):
        for text, answer in turns if form in ("letter", "text") else ():
            question = next(question for question in asked if question.text in text.splitlines())
            options = dict(line.split(". ", 1) for line in text.splitlines() if line[:2] in ("A.", "B.", "C.", "D."))
            if form == "letter":
                assert options[answer] == question.answer and question.type in LETTER_TYPES
                letters[answer] += len(options) == 4
            else:
                assert answer == question.answer and answer in options.values() and question.type in TEXT_TYPES
                places[list(options.values()).index(answer)] += len(options) == 4
    for counts in (letters, places):
        assert len(+counts) == 4 and max(counts.values()) < 1.5 * min(counts.values()), counts


def test_some_questions_of_vizwiz_cannot_be_answered():
    answers = Counter()
    for form, scene, asked, turns in conversations(3000):
        if form == "unsure":
            for text, answer in turns:
                answers[answer == UNANSWERABLE] += asked[0].type in FAMILIES[1]  # the others ask what is there
                assert answer != UNANSWERABLE or asked[0].type in FAMILIES[1]
                if answer == UNANSWERABLE:
                    named = [shape for shape in SHAPES if f"the {shape}?" in text]
                    assert not any(thing.shape in named for thing in scene.things)
    assert 0.25 < answers[True] / answers.total() < 0.6
