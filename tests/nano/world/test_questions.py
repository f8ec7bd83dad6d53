"""The questions that only training and the miniature benchmarks ask."""

import random
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest

from lit_eve.nano.world.blind import blind_accuracy
from lit_eve.nano.world.questions import MORE_ANSWERS, TYPES, YES_NO, Ledger, ask, questions
from lit_eve.nano.world.scenes import Scene, Thing, scenes

THINGS = (
    Thing("circle", "red", "small", row=0, column=0),
    Thing("cross", "blue", "large", row=0, column=3),
    Thing("circle", "blue", "small", row=1, column=1),
)
SCENE = Scene(64, 32, (255, 255, 255), THINGS)


def answers(type: str) -> dict[str, str]:
    return {question.text: question.answer for question in questions(SCENE, type)}


def test_answers_are_true():
    sizes = answers("exist_size")
    assert sizes["is there a large cross?"] == "yes" and sizes["is there a large circle?"] == "no"
    assert sizes["is there a large blue shape?"] == sizes["is there a small blue shape?"] == "yes"
    pairs = answers("exist_pair")
    assert (
        pairs["is there a red circle?"] == pairs["is there a blue cross?"] == "yes" and pairs["is there a red cross?"] == "no"
    )
    places = answers("exist_place")
    assert places["is there a circle in row-2?"] == "yes" and places["is there a red shape in row-2?"] == "no"
    assert places["is there a cross in column-4?"] == "yes" and "is there a cross in row-3?" not in places
    assert answers("choose_colour") == {"is the cross blue or red?": "blue", "is the cross red or blue?": "blue"}
    assert answers("choose_shape")["is the red shape a cross or a circle?"] == "circle"
    counts = answers("verify_count")
    assert counts["are there 3 shapes?"] == "yes" and counts["are there 2 shapes?"] == counts["are there 4 shapes?"] == "no"
    assert counts["are there 2 circles?"] == "yes" and counts["are there 2 crosses?"] == "no"
    assert answers("both")["are there circles and crosses?"] == "yes"
    assert answers("both")["are there circles and squares?"] == "no"
    assert answers("either")["are there circles or squares?"] == "yes"
    assert answers("either")["are there squares or triangles?"] == "no"
    assert answers("compare")["are there more circles than crosses?"] == "yes"
    assert answers("compare")["are there more red shapes than blue shapes?"] == "no"
    assert "are there more squares than triangles?" not in answers("compare")


@pytest.mark.parametrize("type", MORE_ANSWERS)
def test_the_blind_stay_blind(type):
    """The best guess by words is hardly better than the best guess by type."""
    ledger, rng, asked = Ledger(weights=dict.fromkeys(TYPES, 0.0) | {type: 1.0}), random.Random(0), []
    for scene in islice(scenes("blind", 0), 2000):
        asked += ask(scene, rng, ledger)
    asked = asked[:500]
    assert len(asked) > 140 and {question.type for question in asked} == {type}
    assert blind_accuracy(asked)["all"] < (0.62 if set(MORE_ANSWERS[type]) == set(YES_NO) else 0.68)
    shares = Counter(question.answer for question in asked)
    assert max(shares.values()) - min(shares.values()) <= 1


def test_pairs_are_asked_where_colours_and_shapes_alone_do_not_tell():
    same = Scene(64, 32, (255, 255, 255), (THINGS[0], replace(THINGS[0], column=2)))
    assert not list(questions(same, "exist_pair")) and len(answers("exist_pair")) == 4


def test_no_question_is_asked_twice():
    ledger, rng = Ledger(slack=99, weights=dict.fromkeys(TYPES, 0.0) | {"exist": 1.0, "exist_pair": 1.0}), random.Random(0)
    for scene in islice(scenes("twice", 0), 200):
        texts = [question.text for question in ask(scene, rng, ledger, 6)]
        assert len(texts) == len(set(texts))


def test_only_the_types_of_a_ledger_are_asked():
    rng = random.Random(0)
    plain, wide = Ledger(slack=30), Ledger(slack=30, weights={"exist_place": 1.0, "place": 0.0})
    for ledger in (plain, wide):
        for scene in islice(scenes("types", 0), 200):
            ask(scene, rng, ledger, 3)
    assert set(plain.asked) == set(TYPES)
    assert set(wide.asked) == {*TYPES, "exist_place"} - {"place"} and wide.asked["exist_place"] > 20
