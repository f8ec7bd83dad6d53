"""A sample and its conversation, in the formats of LLaVA and of transformers, brought into one form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeAlias

from lit_eve.errors import SampleError
from lit_eve.processing.sources import ImageSource

Role: TypeAlias = Literal["system", "user", "assistant"]

IMAGE_PLACEHOLDER = "<image>"

_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass
class Sample:
    """One training sample.

    Args:
        key: its name in error messages and logs.
        conversation: messages, ``{"from": "human" | "gpt" | "system", "value": text}`` as in LLaVA or
            ``{"role": "user" | "assistant" | "system", "content": text or parts}`` as in transformers. ``<image>`` in a
            text marks the place of an image; where the content is a list of parts, only parts of type ``image`` do. An answer
            with ``"is_input": True`` is read, not learned.
        images: in the order of their places: file contents, paths or PIL images.
        metadata: anything else that is known about the sample.
    """

    key: str
    conversation: Sequence[Mapping[str, Any]]
    images: Sequence[ImageSource] = ()
    metadata: dict[str, Any] = field(default_factory=dict)


class Slot(Enum):
    """The place of an image among the parts of a message."""

    IMAGE = IMAGE_PLACEHOLDER


Part: TypeAlias = "str | Slot"


@dataclass(frozen=True)
class Message:
    """One turn: who speaks, and the texts and image places in their order (no empty text, no two texts in a row)."""

    role: Role
    parts: tuple[Part, ...]
    is_input: bool = False
    """Of an answer: the model reads it, and does not learn to write it."""

    @property
    def is_learned(self) -> bool:
        return self.role == "assistant" and not self.is_input

    @property
    def is_empty(self) -> bool:
        return all(isinstance(part, str) and not part.strip() for part in self.parts)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put ``name`` in front of the message of a SampleError."""
    try:
        yield
    except SampleError as error:
        raise SampleError(f"{name}: {error}") from error.__cause__


def parse_conversation(conversation: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages of a conversation in either format.

    Raises:
        SampleError: no messages, an unknown role, or a message that is no text.
    """
    if not isinstance(conversation, Sequence) or isinstance(conversation, str) or not conversation:
        raise SampleError("the conversation is empty" if not conversation else "the conversation is no list of messages")
    return [_parse_message(message) for message in conversation]


def check_answers(messages: Sequence[Message]) -> None:
    """What training asks for in addition: something to learn, and no answer that is empty.

    Raises:
        SampleError: there is no answer, or an empty one.
    """
    answers = [message for message in messages if message.role == "assistant"]
    if not any(answer.is_learned for answer in answers):
        raise SampleError("the conversation has no answer" + (" that is learned: all of them are is_input" if answers else ""))
    if any(answer.is_empty for answer in answers):
        raise SampleError("the conversation has an empty answer")


def check_text(text: str) -> str:
    """The text, unless no tokenizer takes it.

    Raises:
        SampleError: it has half of a surrogate pair, as texts have that were cut between the two.
    """
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("unicode_escape").decode()
        raise SampleError(f"the text is no Unicode: it has half of a surrogate pair, {half}") from error
    return text


def split_placeholders(text: str) -> tuple[Part, ...]:
    """Texts and image places of a text with ``<image>`` in it.

    Raises:
        SampleError: it is no Unicode.
    """
    check_text(text)
    parts: list[Part] = []
    for index, piece in enumerate(text.split(IMAGE_PLACEHOLDER)):
        if index:
            parts.append(Slot.IMAGE)
        if piece:
            parts.append(piece)
    return tuple(parts)


def _parse_message(message: Mapping[str, Any]) -> Message:
    if isinstance(message, Mapping) and "from" in message and "value" in message:
        role, content = message["from"], message["value"]
    elif isinstance(message, Mapping) and "role" in message and "content" in message:
        role, content = message["role"], message["content"]
    else:
        raise SampleError("a message needs the keys 'from' and 'value', or 'role' and 'content'")
    if not isinstance(role, str) or role not in _ROLES:
        raise SampleError(f"unknown role {role!r}; known: {', '.join(_ROLES)}")
    if not isinstance(is_input := message.get("is_input") or False, bool):  # a table has null where there is none
        raise SampleError(f"is_input of a message must be true or false, got {is_input!r}")
    if isinstance(content, str):
        return Message(_ROLES[role], split_placeholders(content), is_input)
    if isinstance(content, Sequence):
        return Message(_ROLES[role], _join_parts([_parse_part(part) for part in content]), is_input)
    raise SampleError(f"the content of a message must be a text or a list of parts, got {type(content).__name__}")


def _parse_part(part: Any) -> Part:
    if isinstance(part, str):
        return check_text(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("image", "image_url"):
        return Slot.IMAGE
    if kind == "text" and isinstance(part.get("text"), str):
        return check_text(part["text"])
    raise SampleError(f"a part of a message must be a text or an image, got {kind or type(part).__name__!r}")


def _join_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """A newline between an image and a text, none between images: the form of the training data ("<image>\\nWhat ...")."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, str):
            if not part:
                continue
            if isinstance(last, str):
                joined[-1] = last + part
                continue
            if last is Slot.IMAGE and not part.startswith("\n"):
                part = "\n" + part
        elif isinstance(last, str) and not last.endswith("\n"):
            joined[-1] = last + "\n"
        joined.append(part)
    return tuple(joined)
