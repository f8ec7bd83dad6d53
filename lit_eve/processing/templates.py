"""From messages to the text that the language model reads, and which of it is supervised.

A template turns messages into segments, in order: plain text, one special token, or the place of an image. What the model
has to write itself (all that follows the generation prompt up to the end of the turn) is marked when it is put there, so
that no span is ever searched for in the finished text. Text of a conversation stays text: a ``</s>`` that somebody typed
is spelled out in ordinary tokens.

A new template is a class with ``add_bos`` and ``render``, registered by name::

    @templates.register("short")
    class Short(Dialogue):
        def __init__(self) -> None:
            super().__init__(system="Answer in one word.")
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.sample import IMAGE_PLACEHOLDER, Message, Part, Slot, split_placeholders
from lit_eve.registry import Registry

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Segment:
    """A piece of the prompt: a text, the name of one special token, or ``<image>``."""

    text: str
    supervised: bool = False
    kind: Literal["text", "special", "image"] = "text"


class Template(Protocol):
    """How a conversation is written."""

    add_bos: bool
    """Whether the tokenizer's own beginning (``<s>``) is put in front; False where the template writes it."""

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool = False
    ) -> list[Segment]:
        """The segments of a conversation; with ``generation_prompt``, up to where the next answer begins.

        Raises:
            SampleError: the template has no place for such a conversation.
        """
        ...


templates: Registry[Template] = Registry("template")


def image_segment() -> Segment:
    return Segment(IMAGE_PLACEHOLDER, kind="image")


def segments_of(parts: Sequence[Part], supervised: bool = False) -> list[Segment]:
    return [image_segment() if part is Slot.IMAGE else Segment(part, supervised) for part in parts]


def eos_segment(tokenizer: PreTrainedTokenizerBase, supervised: bool = True) -> Segment:
    if tokenizer.eos_token is None:
        raise ConfigError("the tokenizer has no eos_token, so that an answer could never end")
    return Segment(tokenizer.eos_token, supervised, kind="special")


@templates.register("plain")
class Plain:
    """Captions: image, caption, newline (stages 1 and 2; preprocess_plain of EVEv1/eve/train/train.py).

    What the user or the system says is left out, only the user's images stay; each answer is followed by ``end``.
    """

    add_bos = True

    def __init__(self, end: str = "\n") -> None:
        self.end = end

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool = False
    ) -> list[Segment]:
        segments: list[Segment] = []
        for message in messages:
            if message.role == "assistant":
                segments += [*segments_of(message.parts, message.is_learned), Segment(self.end, message.is_learned)]
            else:
                segments += [image_segment() for part in message.parts if part is Slot.IMAGE]
        return segments


class Dialogue:
    """``SYSTEM USER: question ASSISTANT: answer</s>USER: ...`` (conversation.py and preprocess_v1 of EVEv1).

    As upstream, an answer before the first question is left out, and a message with one image gets it in front, on a line
    of its own. Several images of a message stay where they are.

    Args:
        system: what stands in front of every conversation that brings no system message itself.
    """

    add_bos = True

    def __init__(self, system: str) -> None:
        self.system = system

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool = False
    ) -> list[Segment]:
        system: Sequence[Part] = (self.system,) if self.system else ()
        if messages[0].role == "system":
            system, messages = messages[0].parts, messages[1:]
        if messages and messages[0].role == "assistant":
            messages = messages[1:]
        segments = [*segments_of(system), Segment(" ")] if system else []
        expected = "user"
        for message in messages:
            if message.role != expected:
                raise SampleError(f"a message of role {message.role!r} stands where one of {expected!r} should")
            parts = image_first(message.parts)
            if message.role == "user":
                segments += [Segment("USER: "), *segments_of(parts), Segment(" ")]
                expected = "assistant"
            else:
                # The space belongs to what the model writes: its prompt ends with the colon.
                learned = message.is_learned
                segments += [Segment("ASSISTANT:"), Segment(" ", learned), *segments_of(parts, learned)]
                segments.append(eos_segment(tokenizer, learned))
                expected = "user"
        if generation_prompt:
            segments.append(Segment("ASSISTANT:"))
        return segments


@templates.register("vicuna_v1")
class VicunaV1(Dialogue):
    """Vicuna v1, the dialogue of EVE's stage 3 (paper, section 3.3)."""

    def __init__(
        self,
        system: str = "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ) -> None:
        super().__init__(system)


@templates.register("eve_v1")
class EveV1(Dialogue):
    """The wording of upstream's ``conv_eve_v1``."""

    def __init__(
        self,
        system: str = "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    ) -> None:
        super().__init__(system)


def image_first(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The single image of a message in front of its text (preprocess_multimodal of EVEv1/eve/train/train.py)."""
    images = sum(part is Slot.IMAGE for part in parts)
    if images == 0:
        return tuple(parts)
    if images == 1:
        text = "".join(part for part in parts if isinstance(part, str)).strip()
        return (Slot.IMAGE, "\n" + text) if text else (Slot.IMAGE,)
    first = parts[0].lstrip() if isinstance(parts[0], str) else parts[0]
    last = parts[-1].rstrip() if isinstance(parts[-1], str) else parts[-1]
    return tuple(part for part in (first, *parts[1:-1], last) if part)


# Private-use characters around a number stand for a content while the tokenizer's template is rendered.
_OPEN, _CLOSE = "\ue000", "\ue001"
_SLOT = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


@dataclass(frozen=True)
class Habits:
    """What is the same in all conversations that a tokenizer's chat template writes."""

    generation_prompt: str
    trims: bool  # contents are stripped
    specials: Mapping[str, tuple[bool, bool]]


@templates.register("chat")
class Chat:
    """The tokenizer's own chat template (``apply_chat_template``).

    The template is rendered with a mark in the place of each content, and the contents are put in afterwards: what comes
    from the template and what comes from the conversation is known without searching. Supervised is all that the model
    has to write: from the end of the generation prompt (which may lie before the answer, as in an empty ``<think>`` block)
    to the special token that ends the turn.

    Args:
        arguments: what the chat template takes besides the messages, for example ``{"enable_thinking": False}``.
    """

    add_bos = False

    def __init__(self, arguments: Mapping[str, Any] | None = None) -> None:
        self.arguments = dict(arguments or {})
        self._habits: dict[str, Habits] = {}

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool = False
    ) -> list[Segment]:
        habits = self._habits_of(tokenizer)
        prompt, specials = habits.generation_prompt, habits.specials
        contents = [{"role": message.role, "content": f"{_OPEN}{i}{_CLOSE}"} for i, message in enumerate(messages)]
        pieces = _SLOT.split(self._apply(tokenizer, contents, generation_prompt))
        order = [int(index) for index in pieces[1::2]]
        if order != list(range(len(messages))):
            raise SampleError("the tokenizer's chat template does not write every message once, in order")
        segments: list[Segment] = []
        after_answer = False
        for message, before in zip(messages, pieces[0::2], strict=False):
            start = before.rfind(prompt) if message.is_learned and prompt else -1
            opening = before[start + len(prompt) :] if start >= 0 else ""
            segments += _written(before.removesuffix(opening), specials, after_answer)
            segments += [Segment(segment.text, True, segment.kind) for segment in split_specials(opening, specials)]
            segments += segments_of(trimmed(message.parts) if habits.trims else message.parts, message.is_learned)
            after_answer = message.is_learned
        return segments + _written(pieces[-1], specials, after_answer)

    def _habits_of(self, tokenizer: PreTrainedTokenizerBase) -> Habits:
        key = str(tokenizer.chat_template)
        if key not in self._habits:
            question = [{"role": "user", "content": f"{_OPEN}{_CLOSE}"}]
            spaced = [{"role": "user", "content": f" {_OPEN}{_CLOSE} "}]
            without = self._apply(tokenizer, question, False)
            self._habits[key] = Habits(
                generation_prompt=self._apply(tokenizer, question, True).removeprefix(without),
                trims=self._apply(tokenizer, spaced, False) == without,
                specials=special_tokens(tokenizer),
            )
        return self._habits[key]

    def _apply(self, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], generation_prompt: bool) -> str:
        if tokenizer.chat_template is None:
            raise ConfigError("the template 'chat' needs a tokenizer with a chat template; this one has none")
        try:
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt, **self.arguments
            )
        except Exception as error:  # whatever the template raises by raise_exception or by its expressions
            raise SampleError(f"the tokenizer's chat template refuses the conversation: {error}") from error


def _written(text: str, specials: Mapping[str, tuple[bool, bool]], after_answer: bool) -> list[Segment]:
    """What the chat template itself wrote; after an answer, it is supervised up to the token that ends the turn."""
    segments = split_specials(text, specials)
    if not after_answer:
        return segments
    end = next((i for i, segment in enumerate(segments) if segment.kind == "special"), None)
    if end is None:
        raise ConfigError("the tokenizer's chat template ends an answer without a special token")
    return [Segment(segment.text, i <= end, segment.kind) for i, segment in enumerate(segments)]


def trimmed(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts of a message without blanks at its beginning and its end."""
    left = list(parts)
    if left and isinstance(left[0], str):
        left[0] = left[0].lstrip()
    if left and isinstance(left[-1], str):
        left[-1] = left[-1].rstrip()
    return tuple(part for part in left if part)


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, tuple[bool, bool]]:
    """Each special token of the tokenizer, and whether it takes the whitespace on its left and on its right."""
    return {token.content: (token.lstrip, token.rstrip) for token in tokenizer.added_tokens_decoder.values() if token.special}


def split_specials(text: str, specials: Mapping[str, tuple[bool, bool]]) -> list[Segment]:
    """Text that was written by a template or by hand as a prompt: its special tokens are meant as such."""
    if not specials:
        return [Segment(text)] if text else []
    pieces = one_of(tuple(specials)).split(text)
    for index in range(1, len(pieces), 2):
        left, right = specials[pieces[index]]
        pieces[index - 1] = pieces[index - 1].rstrip() if left else pieces[index - 1]
        pieces[index + 1] = pieces[index + 1].lstrip() if right else pieces[index + 1]
    return [Segment(piece, kind="special" if i % 2 else "text") for i, piece in enumerate(pieces) if piece]


@lru_cache
def one_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Matches each token, the longest that fits; it splits a text so that every second piece is a token."""
    return re.compile(f"({'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))})")


def split_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[Segment]:
    """A finished prompt, written by hand: ``<image>`` and special tokens are meant as such."""
    specials = special_tokens(tokenizer)
    segments: list[Segment] = []
    for part in split_placeholders(prompt):
        segments += [image_segment()] if part is Slot.IMAGE else split_specials(part, specials)
    return segments


def starts_with_bos(segments: Sequence[Segment], tokenizer: PreTrainedTokenizerBase) -> bool:
    return bool(segments) and segments[0].kind == "special" and segments[0].text == tokenizer.bos_token
