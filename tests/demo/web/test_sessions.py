from __future__ import annotations

import pytest

from lit_eve.demo.web.decoding import Sampling
from lit_eve.demo.web.engine import Ticket
from lit_eve.demo.web.pictures import Picture
from lit_eve.demo.web.sessions import Session, Sessions, Turn
from lit_eve.errors import LitEveError
from lit_eve.processing import ImageGeometry
from tests.models.tiny import GEOMETRY as SIZES
from tests.tiny_model import scene_image

GEOMETRY = ImageGeometry.from_dict(SIZES)


def answered(question: str, **answers: str) -> Turn:
    turn = Turn(question, [Picture.of(scene_image(0), "a", {GEOMETRY})])
    for model, text in answers.items():
        turn.answers[model] = Ticket(model, (), Sampling(), lambda: None)
        turn.answers[model].text, turn.answers[model].done = text, True
    return turn


def test_a_model_reads_its_own_answers_and_those_of_others_where_it_was_not_asked() -> None:
    session = Session([answered("a?", one="A1", two="A2"), answered("b?", two="B2"), answered("c?", one="C1")])
    for model, said in (("one", ["A1", "B2"]), ("two", ["A2", "B2"])):
        messages = session.messages(model, GEOMETRY, 2)
        assert [one["role"] for one in messages] == ["user", "assistant"] * 2 + ["user"]
        assert [one["content"] for one in messages if one["role"] == "assistant"] == said
        assert [one["content"][-1]["text"] for one in messages[::2]] == ["a?", "b?", "c?"]
        assert messages[0]["content"][0]["image"] is session.turns[0].pictures[0].views[GEOMETRY]


def test_users_are_kept_apart_and_forgotten() -> None:
    now = [0.0]
    sessions = Sessions(most=2, idle_seconds=100, clock=lambda: now[0])
    first = sessions.of("a")
    first.turns.append(answered("a?", one="A"))
    writing = first.turns[0].answers["one"]
    assert sessions.of("a") is first and not sessions.of("b").turns
    with pytest.raises(LitEveError, match="2 people use this demo now: come back later"):
        sessions.of("c")
    now[0] = 60
    sessions.of("b")
    now[0] = 110
    sessions.of("c")  # "a" did nothing for too long
    assert len(sessions) == 2 and not first.turns and writing.cancelled
    sessions.close("b")
    sessions.close("nobody")
    assert len(sessions) == 1 and not sessions.of("b").turns


def test_nothing_to_take_back() -> None:
    with pytest.raises(LitEveError, match="nothing was asked yet"):
        Session().take_back()
