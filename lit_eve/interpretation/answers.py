"""An answer, and where the model looked when it wrote it.

Notation: N images, H x W token grid of an image, A answer tokens, L recorded layers, h recorded heads, K key positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.maps import maps_of
from lit_eve.interpretation.recording import AttentionRecorder
from lit_eve.models.generation.answer_ends import stop_arguments, without_end
from lit_eve.processing.images import load_image
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer token by token, and what the model was given."""

    tokens: list[str]
    """The A answer tokens as text, without the end of the turn (which stands alone if the answer is empty)."""
    inputs: dict[str, Tensor]
    """What the model was given: ``input_ids``, ``pixel_values``, ``image_grid_hw`` and so on, with one row."""
    token_ids: Tensor
    """All that was written, (W,) int64, the end of the turn as well."""
    steps: list[int]
    """Which of ``token_ids`` the A tokens are."""


@dataclass(frozen=True)
class AnswerAttention(WrittenAnswer):
    """An answer, and where the model looked when it wrote it.

    Every number belongs to the position that *predicts* a token: the one before it.
    """

    answer: str
    maps: list[Tensor]
    """For each of the N images (A, H, W): the mean over layers and heads; or (A, L, h, H, W), as ``reduce`` was."""
    image_share: Tensor
    """(A, L, h): the part of the attention that falls on slots of images, those of class and split tokens among them."""
    entropy: Tensor
    """(A, L, h) in nats: 0 where a head looks at one token, log K where it looks at all K alike."""
    layers: list[int]
    """The L recorded layers, from 0."""
    heads: list[int]
    """The h recorded heads, from 0."""

    def total(self, image: int = 0) -> Tensor:
        """(H, W), or (L, h, H, W): the mean over the answer's tokens for one image."""
        return self.maps[image].mean(0)

    def step_of(self, word: str) -> int:
        """The first of the answer's tokens that is this word.

        Raises:
            LitEveError: the word was not generated.
        """
        words = [token.strip().casefold() for token in self.tokens]
        if (wanted := word.strip().casefold()) not in words:
            raise LitEveError(f"the word {word!r} was not generated; the tokens are {', '.join(map(repr, self.tokens))}")
        return words.index(wanted)


def attend(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    images: Sequence[ImageSource],
    question: str,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    reduce: Literal["mean"] | None = "mean",
    max_new_tokens: int = 32,
) -> AnswerAttention:
    """Answer a question greedily and record the attention on the way.

    Args:
        images: seen before the question.
        question: what the user asks.
        layers, heads: recorded; negative ones from the end; None: all.
        reduce: "mean" over them; None keeps each (A * L * h * H * W numbers per image).
        max_new_tokens: the longest answer.

    Raises:
        LitEveError: there is no image, or no such layer or head.
    """
    if not images:
        raise LitEveError("attend: there is no image to look at")
    inputs = question_inputs(model, processor, images, question)
    return attend_prompt(model, processor, inputs, layers, heads, reduce, max_new_tokens)


@torch.no_grad()
def attend_prompt(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    inputs: Mapping[str, Tensor],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    reduce: Literal["mean"] | None = "mean",
    max_new_tokens: int = 32,
) -> AnswerAttention:
    """As `attend`, of a prompt that the processor has made.

    Args:
        inputs: of one prompt with images, without padding, on the model's device.
    """
    if reduce not in ("mean", None):
        raise LitEveError(f"attend: reduce is 'mean' or None, not {reduce!r}")
    prompt = inputs["input_ids"].shape[1]
    with AttentionRecorder(model, layers, heads) as recorder:
        stop = stop_arguments(model, processor, prompt)
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, **stop}
        output = model.generate(**inputs, **settings)
    written = output[0, prompt:]
    special = set(processor.tokenizer.all_special_ids)
    steps = [step for step, token in enumerate(written.tolist()) if token not in special] or [0]
    # Each step has one more key than the one before: what is made of them is not.
    looked = [
        torch.stack([recorder.calls(layer)[step][:, :, 0] for layer in recorder.layers], 1) for step in steps
    ]  # (1, L, h, K)
    reduced = [row.mean((1, 2)) if reduce else row for row in looked]
    per_token = [maps_of(model, inputs, row) for row in reduced]
    slots = inputs["input_ids"][0] == model.config.image_token_id  # (T,)
    return AnswerAttention(
        answer=without_end(processor.tokenizer.decode(written, skip_special_tokens=True), processor),
        tokens=[processor.tokenizer.decode(written[step]) for step in steps],
        maps=[torch.stack(maps) for maps in zip(*per_token, strict=True)],
        image_share=torch.stack([row[0, ..., :prompt][..., slots].sum(-1) for row in looked]),
        entropy=torch.stack([torch.special.entr(row[0]).sum(-1) for row in looked]),
        layers=recorder.layers,
        heads=recorder.heads,
        inputs=dict(inputs),
        token_ids=written,
        steps=steps,
    )


def question_inputs(
    model: EveForConditionalGeneration, processor: EveProcessor, images: Sequence[ImageSource], question: str
) -> dict[str, Tensor]:
    """What the model is given for a question about images, on its device."""
    content = [*({"type": "image", "image": load_image(image)} for image in images), {"type": "text", "text": question}]
    return processor(conversation=[{"role": "user", "content": content}]).to(model.device)
