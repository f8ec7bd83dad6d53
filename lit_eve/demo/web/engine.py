"""One thread answers all users: it reads new questions, writes a token of every answer in turn, and looks into answers."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lit_eve.demo.web.decoding import Decoder, Sampling, Writing
from lit_eve.demo.web.words import Word
from lit_eve.errors import LitEveError

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

BATCH_SIZE = 16  # answers that a model writes at once
MAX_WAITING = 64  # questions that may wait for their turn


class QueueFull(LitEveError):
    """Too many questions wait already."""


class Ticket:
    """A question on its way to an answer. The engine's thread writes it, all others read it.

    Attributes:
        text: the answer so far.
        ids: the tokens that were generated, once it is done.
        words: those of the answer, once it is done.
        note: what is to be said about it besides.
        prompt_tokens: how many the conversation has, images included, once its prompt was read.
        is_complete: whether the model or a stop text ended the answer, not its longest length or the context.
        error: why there is no answer.
        refusal: what was raised, where it is the question that cannot be answered.
        started, first, ended: when its prompt was read, its first token was there, and it was done; seconds of a clock.
    """

    def __init__(
        self, model: str, messages: Sequence[Mapping[str, Any]], sampling: Sampling, notify: Callable[[], None]
    ) -> None:
        self.model, self.messages, self.sampling = model, messages, sampling
        self.text, self.note, self.error = "", "", ""
        self.ids: list[int] = []
        self.words: list[Word] = []
        self.count = self.prompt_tokens = 0
        self.is_complete = False
        self.refusal: LitEveError | None = None
        self.started = self.first = self.ended = 0.0
        self.cancelled = self.done = False
        self._notify = notify

    def cancel(self) -> None:
        """End it with what is written so far."""
        self.cancelled = True

    @property
    def tokens_per_second(self) -> float:
        """From reading the prompt to the last token."""
        return self.count / max(self.ended - self.started, 1e-9)

    def update(self, writing: Writing) -> None:
        """Take over what was written."""
        self.first = self.first or time.perf_counter()
        self.text, self.count, self.prompt_tokens = writing.text.text, len(writing.text.ids), writing.prompt_length
        self._tell()

    def finish(self, writing: Writing | None = None, words: Sequence[Word] = (), error: str = "") -> None:
        """Nothing more will be written."""
        self.error, self.ended, self.messages = error, time.perf_counter(), ()
        if writing is not None and not error:
            self.ids, self.words, self.is_complete = writing.text.ids, list(words), writing.ended
            if not writing.ended:
                full = "the context is full" if writing.fills_context else "cut at the longest answer"
                self.note = "stopped" if self.cancelled else full
        self.done = True  # last: whoever sees it reads the rest
        self._tell()

    def _tell(self) -> None:
        try:
            self._notify()
        except Exception:  # whoever waited is gone, with its event loop
            self.cancel()


class Engine:
    """Models, and the thread that runs them.

    Args:
        models: model and processor by name.
        batch_size: answers that a model writes at once.
        max_waiting: questions that may wait.
    """

    def __init__(
        self,
        models: Mapping[str, tuple[EveForConditionalGeneration, EveProcessor]],
        batch_size: int = BATCH_SIZE,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self.decoders = {name: Decoder(*parts) for name, parts in models.items()}
        self.batch_size, self.max_waiting = batch_size, max_waiting
        self._waiting: list[Ticket] = []
        self._writing: dict[Writing, Ticket] = {}
        self._calls: list[tuple[Future, Callable[[], Any]]] = []
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def ask(
        self,
        model: str,
        messages: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        notify: Callable[[], None] = lambda: None,
    ) -> Ticket:
        """Put a question in the queue.

        Args:
            model: name of the model that answers.
            messages: the conversation, in the format of transformers, with open images.
            sampling: how the answer is drawn.
            notify: called, in the engine's thread, whenever there is something new.

        Raises:
            LitEveError: there is no such model.
            QueueFull: too many questions wait.
        """
        self.decoder(model)
        ticket = Ticket(model, messages, sampling, notify)
        with self._wake:
            if len(self._waiting) >= self.max_waiting:
                raise QueueFull(f"{len(self._waiting)} questions are waiting already: ask again in a moment")
            self._waiting.append(ticket)
            self._wake.notify()
        return ticket

    def decoder(self, model: str) -> Decoder:
        """The model of that name.

        Raises:
            LitEveError: there is none.
        """
        if not isinstance(model, str) or model not in self.decoders:
            raise LitEveError(f"there is no model {model!r}; there are {', '.join(self.decoders)}")
        return self.decoders[model]

    def ahead_of(self, ticket: Ticket) -> int:
        """How many questions to its model wait before this one."""
        with self._wake:
            waiting = [other for other in self._waiting if other.model == ticket.model]
        return waiting.index(ticket) if ticket in waiting else 0

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Run something with the models, between two tokens.

        Raises:
            LitEveError: too much waits.
        """
        future: Future[Result] = Future()
        with self._wake:
            if len(self._calls) >= self.max_waiting:
                raise LitEveError("too many requests are waiting already: try again in a moment")
            self._calls.append((future, function))
            self._wake.notify()
        return future

    def close(self) -> None:
        """End the thread; what is being written is left."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    # ---- the thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._waiting or self._calls or self._writing)
                if self._stopped:
                    return
                calls, self._calls = self._calls[:1], self._calls[1:]
            for future, function in calls:
                _answer_call(future, function)
            self.write()

    def write(self) -> None:
        """A token for every answer. What `call` runs for long calls it now and then, so that the others do not wait."""
        for name, decoder in self.decoders.items():
            try:
                self._advance(decoder, self._admit(name, decoder))
            except Exception as error:  # the next questions must be answered all the same
                self._give_up(name, error)

    def _admit(self, name: str, decoder: Decoder) -> list[Writing]:
        """The questions whose turn it is."""
        room = self.batch_size - len(decoder.rows) if decoder.takes_more else 0
        with self._wake:
            mine = [ticket for ticket in self._waiting if ticket.model == name]
            chosen = [ticket for ticket in mine if ticket.cancelled] + [t for t in mine if not t.cancelled][:room]
            self._waiting = [ticket for ticket in self._waiting if ticket not in chosen]
        admitted = []
        for ticket in chosen:
            if ticket.cancelled:
                ticket.note = "stopped"
                ticket.finish()
                continue
            ticket.started = time.perf_counter()
            try:
                writing = Writing(decoder, ticket.messages, ticket.sampling)
            except Exception as error:
                ticket.refusal = error if isinstance(error, LitEveError) else None
                ticket.finish(error=_sentence(error))
            else:
                admitted.append(writing)
                self._writing[writing] = ticket
        return admitted

    def _advance(self, decoder: Decoder, admitted: list[Writing]) -> None:
        """A token for every answer of a model, the first of those that are new."""
        if decoder.rows:
            decoder.step()
        if admitted:
            decoder.add(admitted)
        for row in decoder.rows:
            ticket = self._writing.get(row)
            if ticket is None:  # finished before, and kept by its round
                continue
            row.finished |= ticket.cancelled
            row.text.closed = row.finished
            ticket.update(row)
            if row.finished:
                del self._writing[row]
                ticket.finish(row, row.text.words(decoder.processor))
        decoder.drop_finished()

    def _give_up(self, model: str, error: Exception) -> None:
        """Whoever waits for words of a model that failed is told so."""
        sentence = _sentence(error)
        self.decoders[model].clear()
        for row, ticket in list(self._writing.items()):
            if ticket.model == model:
                del self._writing[row]
                ticket.finish(error=sentence)


def _sentence(error: Exception) -> str:
    """What a user is told; what is nobody's business but the server's goes into its log."""
    if isinstance(error, LitEveError):
        return str(error)
    logger.error("an answer failed", exc_info=error)
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "the memory of this machine is full now: ask again, with fewer images or words"
    return "the model failed; the log of the server says why"


def _answer_call(future: Future, function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
