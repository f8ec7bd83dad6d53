"""Fuyu's prompt (adept.ai/blog/fuyu-8b; ids as transformers' ``FuyuProcessor`` makes them)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.sample import Message, Slot
from lit_eve.processing.templates import Segment, image_segment, templates

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BEGIN, ANSWER, END = "<s>", "<0x04>", "|ENDOFTEXT|"


@templates.register("fuyu")
class Fuyu:
    """Image, ``<s>``, question and newline, ``<0x04>``, answer, ``|ENDOFTEXT|``; without an image, ``<s>`` comes first.

    A conversation of several turns, with a system message or with several images is refused: no form is known for it.
    """

    add_bos = False

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool = False
    ) -> list[Segment]:
        for token in (BEGIN, ANSWER, END):
            if token not in tokenizer.added_tokens_encoder:
                raise ConfigError(f"the template 'fuyu' needs a tokenizer with the special token {token}; this one has none")
        roles = [message.role for message in messages]
        if roles not in (["user"], ["user", "assistant"]):
            raise SampleError(f"Fuyu's prompt is one question and its answer; this conversation is {', '.join(roles)}")
        question, *answer = ("".join(part for part in message.parts if part is not Slot.IMAGE) for message in messages)
        images = [message.role for message in messages for part in message.parts if part is Slot.IMAGE]
        if len(images) > 1 or "assistant" in images:
            raise SampleError(f"Fuyu's prompt has at most one image, in the question; this conversation has {len(images)}")
        segments = [image_segment() for _ in images]
        segments += [Segment(BEGIN, kind="special"), Segment(question.strip() + "\n")]
        if answer:
            written = [Segment(answer[0], supervised=True), Segment(END, supervised=True, kind="special")]
            return [*segments, Segment(ANSWER, kind="special"), *written]
        return [*segments, Segment(ANSWER, kind="special")] if generation_prompt else segments
