"""Captions, questions and their balance."""

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from lit_eve.nano.world.blind import blind_accuracy
from lit_eve.nano.world.language import caption, facts
from lit_eve.nano.world.questions import ALL_ANSWERS, ANSWERS, FAMILIES, TYPES, Ledger, Question, ask, questions
from lit_eve.nano.world.scenes import Scene, Thing, scenes

RED_CIRCLE = Thing("circle", "red", "small", row=0, column=0)
BLUE_CROSS = Thing("cross", "blue", "large", row=0, column=3)
BLUE_CIRCLE = Thing("circle", "blue", "small", row=1, column=1)


def scene_of(*things: Thing) -> Scene:
    return Scene(64, 32, (255, 255, 255), things)


def answers(scene: Scene, type: str) -> dict[str, str]:
    return {question.text: question.answer for question in questions(scene, type)}


def test_caption_names_the_place_first_in_reading_order():
    scene = scene_of(RED_CIRCLE, BLUE_CROSS)
    place_first = "row-1 column-1 a small red circle, row-1 column-4 a large blue cross"
    assert caption(scene) == place_first
    place_last = "a small red circle row-1 column-1, a large blue cross row-1 column-4"
    assert {caption(scene, random.Random(seed)) for seed in range(20)} == {place_first, place_last}


def test_facts_hold_every_attribute_once():
    words = facts(scene_of(RED_CIRCLE, BLUE_CROSS), random.Random(0)).replace(";", "").split()
    assert " ".join(sorted(words)) == "blue circle column-1 column-4 cross large red row-1 row-1 small"


def test_answers_are_true():
    scene = scene_of(RED_CIRCLE, BLUE_CROSS, BLUE_CIRCLE)
    assert answers(scene, "exist")["is there a red circle?"] == "yes"
    assert answers(scene, "exist")["is there a red cross?"] == "no"
    assert answers(scene, "exist")["is there a green shape?"] == "no"
    assert answers(scene, "count") == {"how many shapes are there?": "3"}
    counts = answers(scene, "count_by_attribute")
    assert counts["how many blue shapes are there?"] == "2"
    assert counts["how many circles are there?"] == "2"
    assert counts["how many small shapes are there?"] == "2"
    assert counts["how many crosses are there?"] == "1"
    assert counts["how many black shapes are there?"] == "0"
    # only what one attribute names without doubt is asked about
    assert answers(scene, "colour") == {"what colour is the cross?": "blue"}
    assert answers(scene, "shape") == {"what is the red shape?": "circle"}
    assert answers(scene, "size") == {"how large is the cross?": "large", "how large is the red shape?": "small"}
    assert answers(scene, "place") == {"where is the cross?": "row-1 column-4", "where is the red shape?": "row-1 column-1"}
    assert answers(scene, "relation") == {}


def test_relations_between_two_things_of_one_row_or_column():
    scene = scene_of(RED_CIRCLE, BLUE_CROSS)
    assert answers(scene, "relation") == {
        "seen from the cross, where is the red shape?": "left",
        "seen from the blue shape, where is the circle?": "left",
        "seen from the circle, where is the blue shape?": "right",
        "seen from the red shape, where is the cross?": "right",
    }
    column = scene_of(RED_CIRCLE, Thing("cross", "blue", "large", row=1, column=0))
    assert answers(column, "relation")["seen from the circle, where is the blue shape?"] == "below"
    assert answers(column, "relation")["seen from the cross, where is the red shape?"] == "above"
    assert answers(scene_of(RED_CIRCLE, Thing("cross", "blue", "large", row=1, column=2)), "relation") == {}
    assert answers(scene_of(RED_CIRCLE, BLUE_CIRCLE), "relation") == {}


def test_every_answer_is_one_of_its_types():
    for scene in islice(scenes("a", 0), 200):
        for type in ALL_ANSWERS:
            assert {question.answer for question in questions(scene, type)} <= set(ALL_ANSWERS[type])


def test_a_ledger_keeps_answers_level():
    ledger = Ledger(slack=1)
    yes, no = (Question("exist", "is there a circle?", answer) for answer in ("yes", "no"))
    assert ledger.admits(yes)
    ledger.add(yes)
    assert not ledger.admits(yes)
    assert not ledger.admits(Question("exist", "is there a cross?", "yes")), "over the whole type, too"
    assert ledger.admits(no)


@pytest.mark.parametrize("turns", [1, 4])
def test_asked_questions_are_balanced(turns):
    ledger, rng, asked = Ledger(slack=2), random.Random(0), []
    for scene in islice(scenes("a", 0), 3000):
        chosen = ask(scene, rng, ledger, turns)
        assert len(set(chosen)) == len(chosen) <= turns
        assert any({question.type for question in chosen} <= set(family) for family in FAMILIES)
        asked += chosen
    assert max(ledger.asked.values()) < 2.5 * min(ledger.asked.values())
    for type in TYPES:
        counts = Counter(question.answer for question in asked if question.type == type)
        assert set(counts) == set(ANSWERS[type])
        assert max(counts.values()) - min(counts.values()) <= 2


def test_weights_make_a_type_more_frequent():
    def share(**weights: float) -> float:
        ledger, rng = Ledger(slack=30, weights=weights), random.Random(0)
        asked = [question for scene in islice(scenes("ask", 0), 400) for question in ask(scene, rng, ledger, 1)]
        return sum(question.type == "place" for question in asked) / len(asked)

    assert share() == pytest.approx(1 / 8, rel=0.1)
    assert share(place=2.0) == pytest.approx(2 / 9, rel=0.1)


def test_blind_accuracy_is_the_best_guess_by_words_or_type():
    def exist(text: str, answer: str, times: int) -> list[Question]:
        return [Question("exist", text, answer)] * times

    assert blind_accuracy([*exist("a?", "yes", 3), *exist("a?", "no", 1)]) == {"exist": 0.75, "all": 0.75}
    by_words = [*exist("a?", "yes", 2), *exist("b?", "no", 2)]
    assert blind_accuracy(by_words)["exist"] == 1.0


def test_questions_do_not_depend_on_the_process():
    """Python shuffles sets of strings anew in every process; a world must be the same in all of them."""
    code = "from lit_eve.nano.world.questions import *; from lit_eve.nano.world.scenes import sample_scene\n"
    code += "print([[q.text for q in questions(sample_scene(str(i)), type)] for i in range(30) for type in ALL_ANSWERS])"
    lists = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in "123"
    }
    assert len(lists) == 1
