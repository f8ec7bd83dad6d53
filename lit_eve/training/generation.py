"""Answers as text, from prompts that the processor has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_eve.errors import SampleError
from lit_eve.processing import Sample, parse_conversation
from lit_eve.processing.sample import Slot

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor
    from lit_eve.processing.sources import ImageSource


@torch.no_grad()
def generate_answers(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    prompts: Mapping[str, Any],
    max_new_tokens: int,
    **kwargs: Any,
) -> list[str]:
    """Continue every row, greedily unless ``kwargs`` for ``generate`` say otherwise.

    Args:
        model: in eval mode.
        processor: decodes the new tokens.
        prompts: left-padded ``input_ids`` and ``attention_mask`` (B, T), ``pixel_values``, ``image_grid_hw``.
        max_new_tokens: length of the longest answer.

    Returns:
        B answers without special tokens and outer blanks.
    """
    inputs = {key: value.to(model.device) for key, value in prompts.items() if isinstance(value, Tensor)}
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, **{"do_sample": False, **kwargs})
    answers = output[:, inputs["input_ids"].shape[1] :]  # (B, new)
    return [text.strip() for text in processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]


def split_answer(sample: Sample) -> tuple[Sequence[Mapping[str, Any]], Sequence[ImageSource], str]:
    """What comes before the first answer of a sample, the images of that part, and the answer.

    Raises:
        SampleError: the sample has no answer.
    """
    messages = parse_conversation(sample.conversation)
    first = next((index for index, message in enumerate(messages) if message.role == "assistant"), None)
    if first is None:
        raise SampleError(f"{sample.key}: the conversation has no answer")
    count = sum(part is Slot.IMAGE for message in messages[:first] for part in message.parts)
    answer = "".join(part for part in messages[first].parts if isinstance(part, str))
    return sample.conversation[:first], sample.images[:count], answer
