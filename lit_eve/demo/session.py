"""A conversation with a model about images, turn by turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from lit_eve.errors import LitEveError
from lit_eve.models.generation.answer_ends import stop_arguments, without_end
from lit_eve.processing.images import load_image
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


class ContextError(LitEveError):
    """A conversation that fills the decoder's context."""


def usable_device(name: str | None) -> torch.device:
    """The device of that name; None: an accelerator if there is one.

    Raises:
        LitEveError: it cannot be used.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(name or accelerator or "cpu")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LitEveError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def check_question(question: str) -> None:
    """Raise LitEveError if there is nothing to answer: no words, or bytes that are no text."""
    if not question.strip():
        raise LitEveError("the question is empty")
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise LitEveError("the question is no text in UTF-8") from error


def check_room(model: EveForConditionalGeneration, length: int, advice: str = "reset it") -> int | None:
    """How many tokens fit behind a conversation; None: no one knows.

    Args:
        length: tokens of the conversation.
        advice: what to do about one that is too long.

    Raises:
        ContextError: it fills the decoder's context.
    """
    room = getattr(model.config.text_config, "max_position_embeddings", None)
    if room is not None and length >= room:
        raise ContextError(f"the conversation has {length} tokens, but the decoder reads {room}: {advice}")
    return None if room is None else room - length


class ChatSession:
    """The turns so far, and the images that come with the next one.

    Args:
        model: in eval mode.
        processor: the model's; its template writes the conversation.
        max_new_tokens: length of the longest answer.
        **generation: further arguments of ``generate``: ``do_sample``, ``temperature``, ``top_p``...
    """

    def __init__(
        self, model: EveForConditionalGeneration, processor: EveProcessor, max_new_tokens: int = 256, **generation: Any
    ) -> None:
        self.model, self.processor = model, processor
        self.generation = {"max_new_tokens": max_new_tokens, "do_sample": False, **generation}
        self.reset()

    def reset(self) -> None:
        """Forget turns and images."""
        self.messages: list[dict[str, Any]] = []
        self.waiting: list[Image.Image] = []

    def add_image(self, image: ImageSource) -> Image.Image:
        """Show an image with the next question.

        Raises:
            SampleError: it cannot be read.
        """
        loaded = load_image(image)
        self.waiting.append(loaded)
        return loaded

    @torch.inference_mode()
    def ask(self, question: str, streamer: BaseStreamer | None = None) -> str:
        """Answer, with all turns before in mind; a turn that fails or is interrupted is forgotten, its images stay.

        Args:
            question: what the user says.
            streamer: gets the tokens as they are generated (transformers' ``TextStreamer``).

        Raises:
            LitEveError: the question is empty or no text, or the conversation has grown longer than the decoder's context.
        """
        check_question(question)
        content = [*({"type": "image", "image": image} for image in self.waiting), {"type": "text", "text": question}]
        messages = [*self.messages, {"role": "user", "content": content}]
        inputs = self.processor(conversation=messages).to(self.model.device)
        length = inputs["input_ids"].shape[1]
        check_room(self.model, length)
        stop = stop_arguments(self.model, self.processor, length)
        output = self.model.generate(**inputs, streamer=streamer, **stop | self.generation)
        answer = without_end(self.processor.decode(output[0, length:], skip_special_tokens=True), self.processor)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        self.waiting = []
        return answer
