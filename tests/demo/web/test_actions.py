from __future__ import annotations

import asyncio
import base64
import re
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from lit_eve.demo.web import looking
from lit_eve.demo.web.actions import MAX_CHARACTERS, Actions, Change
from lit_eve.demo.web.decoding import Sampling
from lit_eve.demo.web.engine import Engine
from lit_eve.demo.web.pictures import Limits
from lit_eve.demo.web.sessions import Session
from lit_eve.errors import LitEveError
from tests.demo.web.asking import LENGTH, QUESTIONS, expected, wait_for
from tests.demo.web.files import encoded
from tests.tiny_model import scene_image

HOW = Sampling(LENGTH)
LIMITS = Limits(bytes=5000, pictures=2)


@pytest.fixture
def actions(engine: Engine) -> Actions:
    return Actions(engine, LIMITS, [(scene_image(3), QUESTIONS[3])])


def upload(seed: int, name: str = "scene.png") -> dict[str, str]:
    return {"name": name, "data": base64.b64encode(encoded(scene_image(seed))).decode()}


async def all_of(changes: AsyncIterator[Change]) -> list[Change]:
    return [change async for change in changes]


def said(html: str | None) -> list[str]:
    """The finished answers."""
    found = re.findall(r'<p class="text words".*?>(.*?)</p>', html or "", re.DOTALL)
    return [re.sub(r"<.*?>", "", words).replace("&#x27;", "'") for words in found]


def run(steps: Callable[[], Any]) -> Any:
    return asyncio.run(steps())


def test_a_conversation(actions: Actions) -> None:
    async def steps() -> None:
        session = Session()
        change = await actions.add_image(session, upload(0))
        assert 'alt="scene.png"' in change.pictures and not change.status
        changes = await all_of(actions.ask(session, f" {QUESTIONS[0]}\n", ["one"], HOW))
        assert changes[0].question == "" and changes[0].pictures == "" and QUESTIONS[0] in changes[0].live
        assert said(changes[-1].history) == [expected(QUESTIONS[0], 0)] and changes[-1].live == ""
        assert "tokens/s" in changes[-1].history and len(changes[-1].history.split("data:image")) == 2

        changes = await all_of(actions.retry(session, ["one", "two"], HOW))
        first, second = said(changes[-1].history)
        assert first == expected(QUESTIONS[0], 0) != second and len(session.turns) == 1

        await all_of(actions.ask(session, QUESTIONS[1], ["one"], HOW))
        assert len(session.turns) == 2
        change = actions.edit(session)
        assert change.question == QUESTIONS[1] and len(said(change.history)) == 2 and len(session.turns) == 1
        change = actions.edit(session)
        assert change.question == QUESTIONS[0] and len(session.waiting) == 1 and "scene.png" in change.pictures
        change = actions.clear(session)
        assert (change.question, change.pictures, change.live) == ("", "", "") and not session.waiting

        change = actions.take_example(session, 0)
        assert change.question == QUESTIONS[3]
        changes = await all_of(actions.ask(session, change.question, ["one"], HOW))
        assert said(changes[-1].history) == [expected(QUESTIONS[3], 3)]

    run(steps)


def test_without_an_image_this_is_told(actions: Actions) -> None:
    changes = run(lambda: all_of(actions.ask(Session(), QUESTIONS[2], ["one"], HOW)))
    assert "No image was shown" in changes[0].status and said(changes[-1].history) == [expected(QUESTIONS[2])]


def test_stopping_and_clearing_while_an_answer_is_written(actions: Actions) -> None:
    async def steps() -> None:
        for act in (actions.stop, actions.clear):
            session = Session()
            changes = []
            async for change in actions.ask(session, "what is red?", ["one"], Sampling(400)):
                changes.append(change)
                if len(changes) == 2:
                    with pytest.raises(LitEveError, match="an answer is being written: stop it first"):
                        await all_of(actions.ask(session, "and?", ["one"], HOW))
                    act(session)
            if act == actions.stop:
                assert "stopped" in changes[-1].history and session.turns[0].answers["one"].count < 400
            else:
                assert changes[-1] == Change() and not session.turns
        with pytest.raises(LitEveError, match="no answer is being written"):
            actions.stop(Session())

    actions.engine.decoders["one"].ends = frozenset()  # so that it does not end by itself
    run(steps)


def test_who_leaves_is_not_answered_any_more(actions: Actions) -> None:
    async def steps() -> None:
        session = Session()
        changes = actions.ask(session, "what is red?", ["one"], Sampling(400))
        await anext(changes)
        await changes.aclose()
        ticket = session.turns[0].answers["one"]
        assert ticket.cancelled
        await asyncio.to_thread(wait_for, [ticket])

    run(steps)


@pytest.mark.parametrize(
    ("question", "models", "sentence"),
    [
        (" ", ["one"], "the question is empty"),
        (None, ["one"], "the question is no text"),
        (["what?"], ["one"], "the question is no text"),
        ("x" * (MAX_CHARACTERS + 1), ["one"], "has 100,001 characters, more than the limit of 100,000"),
        ("caf\udce9?", ["one"], "no text in UTF-8"),
        ("what?", ["three"], "there is no model 'three'"),
    ],
)
def test_questions_that_are_refused_change_nothing(actions: Actions, question: Any, models: list[str], sentence: str) -> None:
    async def steps() -> None:
        session = Session()
        await actions.add_image(session, upload(0))
        with pytest.raises(LitEveError, match=sentence):
            await all_of(actions.ask(session, question, models, HOW))
        assert not session.turns and len(session.waiting) == 1

    run(steps)


def test_a_question_that_does_not_fit_comes_back_with_its_images(actions: Actions) -> None:
    async def steps() -> None:
        session = Session()
        await actions.add_image(session, upload(0))
        text = "red " * 2000
        change = (await all_of(actions.ask(session, text, ["one"], HOW)))[-1]
        assert "the decoder reads 512" in change.status and change.question == text.strip() and change.live == ""
        assert not session.turns and len(session.waiting) == 1 and 'role="alert"' in change.status

    run(steps)


def test_a_full_queue_loses_no_turn(actions: Actions) -> None:
    async def steps() -> None:
        session = Session()
        await all_of(actions.ask(session, QUESTIONS[0], ["one"], HOW))
        actions.engine.max_waiting = 0
        with pytest.raises(LitEveError, match="ask again in a moment"):
            await all_of(actions.retry(session, ["one"], HOW))
        assert [turn.question for turn in session.turns] == [QUESTIONS[0]] and not session.is_busy

    run(steps)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (None, "an upload needs a name and its content"),
        ({"name": "a.png"}, "an upload needs a name and its content"),
        ({"name": "a.png", "data": "/etc/passwd"}, "a.png: the upload is broken"),
        ({"name": "a.png", "data": "é"}, "a.png: the upload is broken"),
        ({"name": "../b/a.png", "data": "AAAA" * 1700}, r"a.png: the file has 5,098 bytes, more than the limit of 5,000"),
    ],
)
def test_uploads_that_are_none(actions: Actions, sent: Any, sentence: str) -> None:
    with pytest.raises(LitEveError, match=sentence):
        run(lambda: actions.add_image(Session(), sent))


def test_images_are_counted_and_keep_their_order(actions: Actions) -> None:
    async def steps() -> None:
        session = Session()
        uploads = [actions.add_image(session, upload(seed, f"{seed}.png")) for seed in range(4)]
        found = await asyncio.gather(*uploads, return_exceptions=True)
        assert [picture.name for picture in session.waiting] == ["0.png", "1.png"]
        assert [str(one) for one in found[2:]] == [f"{i}.png is left out: a question takes at most 2 images" for i in (2, 3)]
        actions.remove_image(session, 0)
        assert [picture.name for picture in session.waiting] == ["1.png"]
        for index in (1, -1, None, "0", True):
            with pytest.raises(LitEveError, match="there is no such image"):
                actions.remove_image(session, index)
            with pytest.raises(LitEveError, match="there is no such example"):
                actions.take_example(session, index)

    run(steps)


def test_nothing_is_lost_of_what_is_said_about_images_chosen_together(actions: Actions) -> None:
    async def steps() -> None:
        session, told = Session(), []
        chosen = [{"name": f"{name}.png", "data": "AAAA"} for name in "ab"] + [upload(seed, f"{seed}.png") for seed in range(3)]
        for number, sent in enumerate(chosen, 1):
            change = await actions.upload(session, sent | {"number": number, "first": number == 1})
            told.append(re.findall(r'role="alert" dir="auto">(\S+)', change.status))
            assert change.received == number
        assert told[1:3] == [["a.png:", "b.png:"]] * 2 and told[-1] == ["a.png:", "b.png:", "2.png"]
        change = await actions.upload(session, upload(3, "3.png") | {"number": {"any": "thing"}, "first": True})
        assert change.status.count("<p") == 1 and change.received is None

    run(steps)


def test_looking(actions: Actions) -> None:
    async def steps() -> None:
        session = Session()
        with pytest.raises(LitEveError, match="choose a word of an answer first"):
            await all_of(actions.look_again(session, "attention", 0, 0))
        await actions.add_image(session, upload(0))
        await actions.add_image(session, upload(1))
        await all_of(actions.ask(session, QUESTIONS[0], ["one", "two"], HOW))
        place = {"turn": 0, "model": "two", "word": 1}
        sizes, change = await all_of(actions.look(session, place, "attention", 9, 1))
        assert (sizes.layers, sizes.heads, sizes.layer, sizes.head) == (3, 4, 0, 1)
        assert change.maps.count("<img") == 2 and "<b>two</b>" in change.maps and "mean of layers, head 1" in change.maps
        (other,) = await all_of(actions.look_again(session, "attention", 2, 0))
        assert other.maps != change.maps and "layer 2, mean of heads" in other.maps
        assert (await all_of(actions.look(session, place | {"word": 0}, "attention", 0, 1)))[-1].maps != change.maps
        with pytest.raises(LitEveError, match="there is no layer 4: this model has 3"):
            await all_of(actions.look_again(session, "attention", 4, 0))

        waiting, causal = await all_of(actions.look_again(session, "causal", 1, 1))
        assert "Blanking" in waiting.maps and causal.maps.count("<img") == 2 and "patches that it rests on" in causal.maps
        assert await all_of(actions.look_again(session, "causal", 2, 2)) == [causal]  # known by now
        for wrong, sentence in (
            ({"word": 99}, "this word was not generated"),
            ({"word": -1}, "this word was not generated"),
            ({"word": "cat"}, "this word was not generated"),
            ({"model": "three"}, "this word was not generated"),
            ({"model": ["one"]}, "this word was not generated"),
            ({"turn": 1}, "there is no such answer"),
        ):
            with pytest.raises(LitEveError, match=sentence):
                await all_of(actions.look(session, place | wrong, "attention", 0, 0))
        with pytest.raises(LitEveError, match="there is no such answer"):
            await all_of(actions.look(session, None, "attention", 0, 0))

    run(steps)


def test_others_are_answered_while_patches_are_blanked_and_nobody_waits_for_what_is_not_wanted(
    actions: Actions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def steps() -> None:
        session, other = Session(), Session()
        await actions.add_image(session, upload(0))
        await all_of(actions.ask(session, QUESTIONS[0], ["one"], HOW))
        await all_of(actions.look(session, {"turn": 0, "model": "one", "word": 0}, "attention", 0, 0))
        looked = session.looked
        answers = []

        async def ask() -> None:
            answers.extend(said((await all_of(actions.ask(other, QUESTIONS[1], ["one"], HOW)))[-1].history))
            assert looked.causes is None  # still at it
            session.clear()

        asking = asyncio.ensure_future(ask())
        changes = await all_of(actions.look_again(session, "causal", 0, 0))
        await asking
        assert answers == [expected(QUESTIONS[1])] and len(changes) == 1 and looked.causes is None

    model = actions.engine.decoders["one"].model
    model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    monkeypatch.setattr(looking, "blank_patches", partial(looking.blank_patches, batch_size=1))
    run(steps)


def test_what_is_written_by_others_is_shown_as_text(actions: Actions) -> None:
    async def steps() -> None:
        session = Session()
        evil = "<img src=x onerror=alert(1)>${alert(1)}{{value}}"
        change = await actions.add_image(session, upload(0, f'"><script>{evil}'))
        changes = [change, *await all_of(actions.ask(session, evil, ["one"], HOW))]
        session.turns[0].answers["one"].error = evil
        changes.append(actions.show(session))
        for change in changes:
            for html in (change.history, change.live, change.pictures, change.status):
                assert "<img src=x" not in (html or "") and "<script" not in (html or "")
        assert "&lt;img src=x onerror=alert(1)&gt;" in changes[-1].history

    run(steps)


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        (Sampling(LENGTH, temperature=7.0), "the temperature must be from 0 to 2, got 7.0"),
        (Sampling(LENGTH, temperature=float("nan")), "the temperature must be from 0 to 2, got nan"),
        (Sampling(LENGTH, top_p=0.0), "the top-p must be from 0.05 to 1, got 0.0"),
        (Sampling(0), "the longest answer must be from 1 to 1024, got 0"),
        (Sampling(LENGTH, seed=10**22), "the seed must be from -1 to 2147483647, got 10000000000000000000000"),
    ],
)
def test_numbers_that_the_page_does_not_offer_are_refused(actions: Actions, sampling: Sampling, sentence: str) -> None:
    with pytest.raises(LitEveError, match=re.escape(sentence)):
        run(lambda: all_of(actions.ask(Session(), QUESTIONS[0], ["one"], sampling)))


def test_a_random_seed_is_told(actions: Actions) -> None:
    def ask(how: Sampling) -> tuple[str, str]:
        changes = run(lambda: all_of(actions.ask(Session(), QUESTIONS[0], ["one"], how)))
        return said(changes[-1].history)[0], re.search(r"seed (\d+)", changes[-1].history)[1]

    answer, seed = ask(Sampling(LENGTH, temperature=2.0, seed=-1))
    assert ask(Sampling(LENGTH, temperature=2.0, seed=int(seed))) == (answer, seed)
    assert ask(Sampling(LENGTH, temperature=2.0, seed=-1))[1] != seed
