"""What the language model reads: every kind of document says the truth about its map."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest

from lit_eve.errors import ConfigError
from lit_eve.nano.world.datasets import WorldSettings
from lit_eve.nano.world.documents import KINDS, SHARES, counts_document, document, facts_document, stop_document
from lit_eve.nano.world.language import caption, glyph_map
from lit_eve.nano.world.prompts import Turn
from lit_eve.nano.world.questions import PLURALS, pairs_of, questions
from lit_eve.nano.world.scenes import Scene, Thing, scenes
from lit_eve.nano.world.tokenizer import make_tokenizer

RED_CIRCLE = Thing("circle", "red", "small", row=0, column=0)
BLUE_CROSS = Thing("cross", "blue", "large", row=1, column=3)
SCENE = Scene(64, 32, (255, 255, 255), (RED_CIRCLE, BLUE_CROSS))
VIEW = "small-red-circle . . .; . . . large-blue-cross;"


def test_a_map_has_a_word_per_cell() -> None:
    assert glyph_map(SCENE) == VIEW


def test_kinds_come_by_their_shares() -> None:
    rng = random.Random(0)
    kinds = Counter(document(SCENE, [], rng)[0] for _ in range(4000))
    rest = 1 - SHARES["chat"]
    assert set(kinds) == set(KINDS) == set(SHARES) - {"chat"}
    for kind, count in kinds.items():
        assert count / 4000 == pytest.approx(SHARES[kind] / rest, abs=0.03)
    only = {document(SCENE, [], rng, {"caption": 1.0}) for _ in range(100)}
    assert ("caption", f"{VIEW} {caption(SCENE)}\n") in only and {kind for kind, _ in only} == {"caption"}


def test_turns_become_a_chat() -> None:
    turns = [Turn("how many shapes are there?", "2"), Turn("is there a cross?", "yes")]
    assert document(SCENE, turns, random.Random(0)) == (
        "chat",
        f"USER: {VIEW}\nhow many shapes are there? ASSISTANT: 2</s>USER: is there a cross? ASSISTANT: yes</s>",
    )


def test_facts_come_twice_each_time_in_another_order() -> None:
    view, first, second = facts_document(SCENE, random.Random(1)).removesuffix("\n").split("\n")
    assert view == VIEW and first != second
    words = [sorted(text.replace(";", "").split()) for text in (first, second)]
    expected = ["blue", "circle", "column-1", "column-4", "cross", "large", "red", "row-1", "row-2", "small"]
    assert words == [expected, expected]


def test_counts_are_those_that_questions_ask_for() -> None:
    for scene in islice(scenes("counts", 0), 50):
        _, text, _ = counts_document(scene, random.Random(0)).split("\n")
        said = dict(phrase.rsplit(" ", 1) for phrase in text.split("; "))
        asked = {question.text: question.answer for question in questions(scene, "count_by_attribute")}
        assert said.pop("shapes") == str(len(scene.things))
        for colour, shape, count in pairs_of(scene.things):
            assert said.pop(f"{colour} {PLURALS[shape]}", "0") == str(count)
        for name, count in said.items():
            assert asked.get(f"how many {name} are there?", "4") == count
        missing = {text for text, answer in asked.items() if answer != "0"} - {f"how many {name} are there?" for name in said}
        assert not missing, "what is there is always counted"


def test_a_stopped_map_ends_with_a_thing_and_says_where_it_is() -> None:
    found = {stop_document(SCENE, random.Random(seed)) for seed in range(40)}
    maps = {"small-red-circle\nrow-1 column-1\n", "small-red-circle . . .; . . . large-blue-cross\nrow-2 column-4\n"}
    assert found == maps | {f"USER: {text}" for text in maps}


def test_every_word_is_in_the_vocabulary() -> None:
    tokenizer, rng = make_tokenizer(), random.Random(0)
    for scene in islice(scenes("words", 0), 200):
        for kind, make in KINDS.items():
            assert tokenizer.unk_token_id not in tokenizer(make(scene, rng)).input_ids, kind


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"chat": 1.0, "poem": 0.5}, "no kind poem; there are chat, caption"),
        ({"chat": 0.5}, "add up to 1"),
        ({"chat": 1.5, "caption": -0.5}, "not negative"),
    ],
)
def test_shares_that_make_no_sense_are_refused(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WorldSettings(documents=shares)
