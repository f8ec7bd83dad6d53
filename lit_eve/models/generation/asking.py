"""Answers as text, from prompts that the processor has made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_eve.data.prompts import STAND_IN
from lit_eve.errors import SampleError
from lit_eve.models.generation.answer_ends import stop_arguments, without_end
from lit_eve.processing import Sample, parse_conversation
from lit_eve.processing.sample import Slot, naming

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor
    from lit_eve.processing.processor import TemplateName
    from lit_eve.processing.sources import ImageSource


@torch.no_grad()
def generate_answers(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    prompts: Mapping[str, Any],
    max_new_tokens: int,
    template: TemplateName | None = None,
    **kwargs: Any,
) -> list[str]:
    """Continue every row, greedily unless ``kwargs`` for ``generate`` say otherwise.

    Args:
        model: in eval mode.
        processor: decodes the new tokens.
        prompts: left-padded ``input_ids`` and ``attention_mask`` (B, T), ``pixel_values``, ``image_grid_hw``.
        max_new_tokens: length of the longest answer.
        template: how the prompts were written, and so with what answers end; None: the processor's own.

    Returns:
        B answers without special tokens and outer blanks.
    """
    inputs = on_device(model, prompts)
    length = inputs["input_ids"].shape[1]
    settings = {"do_sample": False, **stop_arguments(model, processor, length, template), **kwargs}
    output = model.generate(**inputs, max_new_tokens=max_new_tokens, **settings)
    answers = output[:, length:]  # (B, new)
    texts = processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [without_end(text, processor, template) for text in texts]


def on_device(model: EveForConditionalGeneration, prompts: Mapping[str, Any]) -> dict[str, Tensor]:
    """What ``generate`` takes of prompts."""
    return {key: value.to(model.device) for key, value in prompts.items() if isinstance(value, Tensor)}


@dataclass(frozen=True)
class Question:
    """What a sample asks, and what it answers itself.

    Args:
        key: of the sample.
        conversation: what comes before the answer.
        images: of that part.
        expected: the answer.
        fault: why the sample cannot be asked.
    """

    key: str
    conversation: Sequence[Mapping[str, Any]]
    images: Sequence[ImageSource]
    expected: str
    fault: str | None = None


def split_answer(sample: Sample) -> Question:
    """A sample up to its first answer to a user. An assistant's opening, as instruction mixes have it, is part of the question.

    Raises:
        SampleError: the sample has no answer, or no question before one.
    """
    with naming(sample.key):
        messages = parse_conversation(sample.conversation)
        roles = [message.role for message in messages]
        if "assistant" not in roles:
            raise SampleError("the conversation has no answer")
        if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
            raise SampleError("the conversation has no question before an answer")
    first = roles.index("assistant", roles.index("user"))
    count = sum(part is Slot.IMAGE for message in messages[:first] for part in message.parts)
    answer = "".join(part for part in messages[first].parts if isinstance(part, str))
    return Question(sample.key, sample.conversation[:first], sample.images[:count], answer)


def ask(
    samples: Sequence[Sample], processor: EveProcessor, template: TemplateName | None = None
) -> tuple[list[Question], Mapping[str, Any]]:
    """The prompts of samples.

    Args:
        samples: with their answers.
        processor: makes prompts.
        template: how conversations are written, instead of the processor's own.

    Returns:
        the question of each sample, and what ``generate_answers`` takes: a prompt for each of them, so that ranks of a sharded
        model stay in step. Where ``fault`` is set, the prompt stands in for one that cannot be made.
    """

    def prompts_of(questions: Sequence[Question]) -> Mapping[str, Any]:
        asked = [STAND_IN if question.fault else question for question in questions]
        return processor(
            conversation=[question.conversation for question in asked],
            images=[list(question.images) for question in asked],
            template=template,
            keys=[question.key for question in asked],
        )

    questions = [_question(sample) for sample in samples]
    try:
        return questions, prompts_of(questions)
    except SampleError:  # of a broken image, or one that the template has no place for; find it, and ask the others
        for index, question in enumerate(questions):
            try:
                prompts_of([question])
            except SampleError as error:
                questions[index] = replace(question, fault=str(error))
        return questions, prompts_of(questions)


def _question(sample: Sample) -> Question:
    try:
        return split_answer(sample)
    except SampleError as error:
        return Question(sample.key, (), (), "", str(error))
