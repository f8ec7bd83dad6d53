"""ChatML (``<|im_start|>role\\n ... <|im_end|>``) as encoder-free models write it, without the tokenizer's own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError
from lit_eve.processing.sample import Message, Part
from lit_eve.processing.templates import Segment, segments_of, templates, trimmed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

START, END = "<|im_start|>", "<|im_end|>"


@templates.register("chatml")
class ChatML:
    """Each turn between ``<|im_start|>`` and ``<|im_end|>``; images stay where they are in their message.

    An answer and the ``<|im_end|>`` behind it are supervised. As upstream, an answer before the first question is left out.

    ====================  =======================================================================================
    NEO                   ``learn_after_turn: true`` (VLMTrainKit, the preprocessing of its dataset)
    VoRA                  ``system: You are a helpful assistant.``
    Mono-InternVL         ``after_turn: "", trim: true`` and a system message (template ``internlm2-chat``)
    ====================  =======================================================================================

    Args:
        system: what stands in front of every conversation that brings no system message itself; "": nothing.
        after_turn: text between two turns.
        learn_after_turn: that text also ends the last turn, and is supervised behind an answer.
        trim: blanks at the beginning and the end of a message are left out.
    """

    add_bos = True

    def __init__(self, system: str = "", after_turn: str = "\n", learn_after_turn: bool = False, trim: bool = False) -> None:
        self.system = system
        self.after_turn = after_turn
        self.learn_after_turn = learn_after_turn
        self.trim = trim

    def render(
        self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, generation_prompt: bool = False
    ) -> list[Segment]:
        for token in (START, END):
            if token not in tokenizer.added_tokens_encoder:
                raise ConfigError(f"the template 'chatml' needs a tokenizer with the token {token}; this one has none")
        turns = list(messages)
        head = [turns.pop(0)] if turns[0].role == "system" else [Message("system", (self.system,))] if self.system else []
        if turns and turns[0].role == "assistant":
            turns = turns[1:]
        segments: list[Segment] = []
        for message in [*head, *turns]:
            segments += self._opening(message.role) + self._closed(message.parts, message.is_learned)
        if generation_prompt:
            return segments + self._opening("assistant")
        return segments if self.learn_after_turn else segments[:-1]

    @staticmethod
    def _opening(role: str) -> list[Segment]:
        return [Segment(START, kind="special"), Segment(f"{role}\n")]

    def _closed(self, parts: Sequence[Part], learned: bool) -> list[Segment]:
        written = segments_of(trimmed(parts) if self.trim else parts, learned)
        return [*written, Segment(END, learned, kind="special"), Segment(self.after_turn, learned and self.learn_after_turn)]
