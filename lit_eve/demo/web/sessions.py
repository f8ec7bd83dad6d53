"""What the demo remembers of each user, in memory only, until the page is closed or left alone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lit_eve.demo.web.engine import Ticket
from lit_eve.demo.web.pictures import Picture
from lit_eve.errors import LitEveError

if TYPE_CHECKING:
    from torch import Tensor

    from lit_eve.demo.web.looking import Attention
    from lit_eve.interpretation import WrittenAnswer
    from lit_eve.processing import ImageGeometry

MAX_SESSIONS = 200
MOST_TOLD = 50  # sentences about images that were chosen together
IDLE_SECONDS = 3600.0


@dataclass(eq=False)
class Turn:
    """A question, and what each of the asked models answered."""

    question: str
    pictures: list[Picture]
    answers: dict[str, Ticket] = field(default_factory=dict)

    def said_by(self, model: str) -> str:
        """The model's answer; that of another one, if only that was asked."""
        return (self.answers.get(model) or next(iter(self.answers.values()))).text


@dataclass(eq=False)
class Looked:
    """A word that is looked into.

    Attributes:
        turn, model: whose answer it is of.
        word: its text.
        written: what is read again.
        attention: where the model looked.
        causes: (H, W) for each image, how much the word rests on each patch; None until somebody asks.
    """

    turn: int
    model: str
    word: str
    written: WrittenAnswer
    attention: Attention
    causes: list[Tensor] | None = None


@dataclass
class Session:
    """The conversation of one user.

    Attributes:
        turns: so far; the last one may still be answered.
        waiting: images that come with the next question.
        looked: the word that is looked into.
        used: when it was, by the clock of `Sessions`.
        adding: held while an image is added.
        told: HTML, what was said about the images that were chosen last.
    """

    turns: list[Turn] = field(default_factory=list)
    waiting: list[Picture] = field(default_factory=list)
    looked: Looked | None = None
    used: float = 0.0
    adding: asyncio.Lock = field(default_factory=asyncio.Lock)
    told: deque[str] = field(default_factory=lambda: deque(maxlen=MOST_TOLD))

    @property
    def is_busy(self) -> bool:
        """Whether an answer is being written."""
        return bool(self.turns) and not all(ticket.done for ticket in self.turns[-1].answers.values())

    def messages(self, model: str, geometry: ImageGeometry, turn: int) -> list[Mapping[str, Any]]:
        """The conversation up to the question of a turn, as that model saw it, in the format of transformers."""
        messages: list[Mapping[str, Any]] = []
        for index, past in enumerate(self.turns[: turn + 1]):
            content = [{"type": "image", "image": picture.views[geometry]} for picture in past.pictures]
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": past.question}]})
            if index < turn:
                messages.append({"role": "assistant", "content": past.said_by(model)})
        return messages

    def stop(self) -> None:
        """End the answers that are being written."""
        for ticket in self.turns[-1].answers.values() if self.turns else ():
            ticket.cancel()

    def clear(self) -> None:
        """Forget everything."""
        self.stop()
        self.turns, self.waiting, self.looked = [], [], None

    def take_back(self) -> Turn:
        """Forget the last turn.

        Raises:
            LitEveError: there is none.
        """
        if not self.turns:
            raise LitEveError("nothing was asked yet")
        self.stop()
        self.looked = None
        return self.turns.pop()


class Sessions:
    """All users, kept apart by the name that the page draws at random for each of its visits.

    Args:
        most: more are refused.
        idle_seconds: whoever does nothing for so long is forgotten.
        clock: seconds.
    """

    def __init__(
        self, most: int = MAX_SESSIONS, idle_seconds: float = IDLE_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.idle_seconds, self._clock = most, idle_seconds, clock
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, name: str) -> Session:
        """The session of that name; a new one if there is none.

        Raises:
            LitEveError: there are too many users.
        """
        now = self._clock()
        with self._lock:
            self._forget([old for old, session in self._sessions.items() if now - session.used > self.idle_seconds])
            if name not in self._sessions:
                if len(self._sessions) >= self.most:
                    raise LitEveError(f"{len(self._sessions)} people use this demo now: come back later")
                self._sessions[name] = Session()
            self._sessions[name].used = now
            return self._sessions[name]

    def close(self, name: str) -> None:
        """Forget a user."""
        with self._lock:
            self._forget([name])

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            if (session := self._sessions.pop(name, None)) is not None:
                session.clear()
