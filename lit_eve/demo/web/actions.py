"""What users do on the page, without the page: each action says what is to be shown then, or raises LitEveError."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lit_eve.demo.session import check_question
from lit_eve.demo.web import render
from lit_eve.demo.web.decoding import Sampling
from lit_eve.demo.web.engine import Engine
from lit_eve.demo.web.looking import attention_of, causes_of, written_word
from lit_eve.demo.web.pictures import LIMITS, Limits, Picture, plain_name, read_picture
from lit_eve.demo.web.sessions import Looked, Session, Turn
from lit_eve.errors import LitEveError

if TYPE_CHECKING:
    from PIL import Image

MAX_CHARACTERS = 100_000  # of a question; a tokenizer takes seconds for millions
LONGEST_ANSWER = 1024  # tokens
LARGEST_SEED = 2**31 - 1
TEMPERATURES, TOP_PS = (0, 2), (0.05, 1)  # from, to
PAUSE = 0.05  # seconds between two states of an answer on the page
DECODED_AT_ONCE = 2  # uploads, each of which may take some hundred MB meanwhile


@dataclass(frozen=True)
class Change:
    """What is to be shown; None: what is there.

    Attributes:
        history, live, status, pictures, maps: HTML.
        question: the text in the box.
        layers, heads: how many the model has whose map is shown.
        layer, head: which of them is shown, from 1; 0: the mean over all.
        received: the number of the upload that this is the answer to.
    """

    history: str | None = None
    live: str | None = None
    status: str | None = None
    pictures: str | None = None
    question: str | None = None
    maps: str | None = None
    layers: int | None = None
    heads: int | None = None
    layer: int | None = None
    head: int | None = None
    received: int | None = None


class Actions:
    """What users can do.

    Args:
        engine: answers.
        limits: of uploads.
        examples: images with a question each.
    """

    def __init__(self, engine: Engine, limits: Limits = LIMITS, examples: Sequence[tuple[Image.Image, str]] = ()) -> None:
        self.engine, self.limits = engine, limits
        self._geometries = {decoder.model.geometry for decoder in engine.decoders.values()}
        self.examples = [
            (Picture.of(image, f"example {number}", self._geometries), question)
            for number, (image, question) in enumerate(examples, 1)
        ]
        self._decoding = asyncio.Semaphore(DECODED_AT_ONCE)

    def show(self, session: Session) -> Change:
        """All that is known of a user."""
        done = session.turns[:-1] if session.is_busy else session.turns
        return Change(render.history(done), pictures=render.thumbnails(session.waiting), maps=render.NOTHING_CHOSEN)

    # ---- images

    async def upload(self, session: Session, upload: Any) -> Change:
        """Add an image, and say what is to be said about it, below what was said about those that were chosen with it.

        Args:
            upload: as `add_image` takes it, with its ``number``, and whether it is the ``first`` of those chosen together.
        """
        number, first = (upload.get(key) if isinstance(upload, dict) else None for key in ("number", "first"))
        if first:
            session.told.clear()
        try:
            change = await self.add_image(session, upload)
        except LitEveError as error:
            change = Change(status=render.message(str(error), is_error=True))
        session.told.append(change.status)
        return replace(change, status="".join(session.told), received=number if isinstance(number, int) else None)

    async def add_image(self, session: Session, upload: Any) -> Change:
        """Show an uploaded image with the next question.

        Args:
            upload: ``{"name": ..., "data": base64}``, if nobody meddled with it.

        Raises:
            LitEveError: it cannot be used, or there are too many.
        """
        name, content = self._content(upload)
        async with session.adding:  # one after the other, in the order in which they came
            if len(session.waiting) >= self.limits.pictures:
                raise LitEveError(f"{plain_name(name)} is left out: a question takes at most {self.limits.pictures} images")
            async with self._decoding:
                picture = await asyncio.to_thread(read_picture, name, content, self._geometries, self.limits)
            session.waiting.append(picture)
        return Change(pictures=render.thumbnails(session.waiting), status=render.message(picture.note))

    def remove_image(self, session: Session, index: Any) -> Change:
        """Take one of the next question's images away."""
        _check_index(index, len(session.waiting), "image")
        del session.waiting[index]
        return Change(pictures=render.thumbnails(session.waiting), status="")

    def take_example(self, session: Session, index: Any) -> Change:
        """Put an example's image and question in place of those that wait."""
        _check_index(index, len(self.examples), "example")
        picture, question = self.examples[index]
        session.waiting = [picture]
        return Change(pictures=render.thumbnails(session.waiting), question=question, status="")

    def _content(self, upload: Any) -> tuple[str, bytes]:
        name, data = (upload.get(key) if isinstance(upload, dict) else None for key in ("name", "data"))
        if not isinstance(name, str) or not isinstance(data, str):
            raise LitEveError("an upload needs a name and its content")
        if (size := len(data) * 3 // 4 - 2) > self.limits.bytes:
            raise LitEveError(f"{plain_name(name)}: the file has {size:,} bytes, more than the limit of {self.limits.bytes:,}")
        try:
            return name, base64.b64decode(data, validate=True)
        except ValueError as error:
            raise LitEveError(f"{plain_name(name)}: the upload is broken") from error

    # ---- questions

    async def ask(self, session: Session, question: Any, models: Sequence[str], sampling: Sampling) -> AsyncGenerator[Change]:
        """Ask one model or several, with the images that wait; the answers as they grow."""
        turn, changed = self._start(session, question, session.waiting, models, sampling)
        session.waiting = []
        async with aclosing(self._follow(session, turn, changed)) as changes:
            async for change in changes:
                yield change

    async def retry(self, session: Session, models: Sequence[str], sampling: Sampling) -> AsyncGenerator[Change]:
        """Ask the last question again."""
        last = session.take_back()
        try:
            turn, changed = self._start(session, last.question, last.pictures, models, sampling)
        except LitEveError:
            session.turns.append(last)
            raise
        async with aclosing(self._follow(session, turn, changed)) as changes:
            async for change in changes:
                yield change

    def edit(self, session: Session) -> Change:
        """Take the last question back, to be asked otherwise."""
        turn = session.take_back()
        session.waiting = turn.pictures
        return replace(self.show(session), live="", status="", question=turn.question)

    def stop(self, session: Session) -> Change:
        """End the answers that are being written."""
        if not session.is_busy:
            raise LitEveError("no answer is being written")
        session.stop()
        return Change()

    def clear(self, session: Session) -> Change:
        """Forget the conversation, with its images."""
        session.clear()
        return replace(self.show(session), live="", status="", question="")

    def _start(
        self, session: Session, question: Any, pictures: list[Picture], models: Sequence[str], sampling: Sampling
    ) -> tuple[Turn, asyncio.Event]:
        """Put a question in the engine's queue; the event is set whenever there is more of its answers."""
        if session.is_busy:
            raise LitEveError("an answer is being written: stop it first")
        if not isinstance(question, str):
            raise LitEveError("the question is no text")
        if len(question) > MAX_CHARACTERS:
            raise LitEveError(f"the question has {len(question):,} characters, more than the limit of {MAX_CHARACTERS:,}")
        check_question(question)
        _check_sampling(sampling)
        if sampling.seed < 0:
            sampling = replace(sampling, seed=random.randrange(LARGEST_SEED + 1))
        changed = asyncio.Event()
        notify = partial(asyncio.get_running_loop().call_soon_threadsafe, changed.set)
        turn = Turn(question.strip(), pictures)
        session.turns.append(turn)
        try:
            for model in dict.fromkeys(models):
                geometry = self.engine.decoder(model).model.geometry
                messages = session.messages(model, geometry, len(session.turns) - 1)
                turn.answers[model] = self.engine.ask(model, messages, sampling, notify)
        except LitEveError:
            session.take_back()
            raise
        return turn, changed

    async def _follow(self, session: Session, turn: Turn, changed: asyncio.Event) -> AsyncGenerator[Change]:
        """The states of a turn until it is answered; one that no model could answer is taken back."""
        tickets = list(turn.answers.values())
        blind = not any(past.pictures for past in session.turns)
        try:
            yield Change(
                history=render.history(session.turns[:-1]) if len(session.turns) > 1 else "",
                live=render.writing(turn, 0),
                status=render.message("no image was shown: the model answers from the words alone" if blind else ""),
                pictures=render.thumbnails(session.waiting),
                question="",
            )
            while not all(ticket.done for ticket in tickets):
                await changed.wait()
                await asyncio.sleep(PAUSE)
                changed.clear()
                yield Change(live=render.writing(turn, max(map(self.engine.ahead_of, tickets))))
        finally:  # also where nobody looks any more
            for ticket in tickets:
                ticket.cancel()
        if turn not in session.turns:  # cleared or taken back meanwhile
            yield Change()
        elif all(ticket.error for ticket in tickets):
            session.turns.remove(turn)
            session.waiting = turn.pictures + session.waiting
            status = render.message(tickets[0].error, is_error=True)
            yield replace(self.show(session), live="", status=status, question=turn.question)
        else:
            yield Change(history=render.history(session.turns), live="")

    # ---- looking

    async def look(self, session: Session, place: Any, method: str, layer: int, head: int) -> AsyncGenerator[Change]:
        """Show where a model looked when it wrote a word, or what the word rests on.

        Args:
            place: ``{"turn": ..., "model": ..., "word": ...}``, counted from 0, if nobody meddled with it.
            method: "attention" or "causal".
            layer, head: from 1; 0: the mean over all. What this model does not have becomes 0.
        """
        turn, model, word = (place.get(key) if isinstance(place, dict) else None for key in ("turn", "model", "word"))
        _check_index(turn, len(session.turns), "answer")
        ticket = session.turns[turn].answers.get(model) if isinstance(model, str) else None
        words = ticket.words if ticket is not None and ticket.done else []
        if isinstance(word, bool) or not isinstance(word, int) or not 0 <= word < len(words):
            raise LitEveError("this word was not generated")
        decoder = self.engine.decoder(model)
        messages = session.messages(model, decoder.model.geometry, turn)

        def read() -> Looked:
            written = written_word(decoder.model, decoder.processor, messages, ticket.ids, words[word].steps)
            return Looked(turn, model, words[word].text, written, attention_of(decoder.model, written))

        session.looked = looked = await asyncio.wrap_future(self.engine.call(read))
        layers, heads = looked.attention.layers, looked.attention.heads
        layer, head = layer if layer <= layers else 0, head if head <= heads else 0
        yield Change(layers=layers, heads=heads, layer=layer, head=head)
        async for change in self.look_again(session, method, layer, head):
            yield change

    async def look_again(self, session: Session, method: str, layer: int, head: int) -> AsyncGenerator[Change]:
        """Show the word that is looked into in another way."""
        looked = session.looked
        if looked is None:
            raise LitEveError("choose a word of an answer first")
        model = self.engine.decoder(looked.model).model
        if method == "causal" and looked.causes is None:
            yield Change(maps=render.message("blanking one patch after the other"), status="")

            def between() -> None:
                if session.looked is not looked:
                    raise _NotWanted
                self.engine.write()

            try:
                read = partial(causes_of, model, looked.written, between)
                looked.causes = await asyncio.wrap_future(self.engine.call(read))
            except _NotWanted:
                return
        seen = [picture.views[model.geometry] for turn in session.turns[: looked.turn + 1] for picture in turn.pictures]
        maps = render.causes(looked, seen) if method == "causal" else render.attention(looked, seen, layer, head)
        yield Change(maps=maps, status="")


class _NotWanted(Exception):
    """Another word was chosen, or the user is gone."""


def _check_sampling(sampling: Sampling) -> None:
    """Raise LitEveError unless the numbers, as anyone may have typed them, are those that the page offers."""
    for name, value, (least, most) in (
        ("temperature", sampling.temperature, TEMPERATURES),
        ("top-p", sampling.top_p, TOP_PS),
        ("longest answer", sampling.max_new_tokens, (1, LONGEST_ANSWER)),
        ("seed", sampling.seed, (-1, LARGEST_SEED)),
    ):
        if not least <= value <= most:
            raise LitEveError(f"the {name} must be from {least} to {most}, got {value}")


def _check_index(index: Any, count: int, what: str) -> None:
    """Raise LitEveError unless the index, as anyone may have sent it, is one of 0..count-1."""
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise LitEveError(f"there is no such {what}")
