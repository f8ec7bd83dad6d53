"""An answer, and where the model looked when it wrote it.

Notation: N images, H x W token grid of an image, A answer tokens, L recorded layers, h recorded heads, K key positions,
B rows, T tokens of a prompt, P patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.maps import maps_of
from lit_eve.interpretation.recording import AttentionRecorder
from lit_eve.interpretation.recording.intercept import indices
from lit_eve.interpretation.samples import check_eval, check_images, check_whole
from lit_eve.models.generation.answer_ends import stop_arguments, without_end
from lit_eve.processing.images import load_image
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor
    from lit_eve.processing.processor import TemplateName


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
        """(H, W), or (L, h, H, W): the mean over the answer's tokens for one image.

        Raises:
            LitEveError: there is no such image.
        """
        (image,) = indices([image], len(self.maps), "image")
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
        LitEveError: there is no image, one in place of a list, or no such layer or head; the geometry does not show a photo
            whole; or the model is in training mode.
    """
    check_images("attend", images)
    inputs = question_inputs(model, processor, images, question)
    return attend_prompts(model, processor, inputs, layers, heads, reduce, max_new_tokens)[0]


@torch.no_grad()
def attend_prompts(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    inputs: Mapping[str, Tensor],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    reduce: Literal["mean"] | None = "mean",
    max_new_tokens: int = 32,
    template: TemplateName | None = None,
) -> list[AnswerAttention]:
    """As `attend`, of prompts that the processor has made.

    Args:
        inputs: of B prompts, left-padded, on the model's device. A prompt without images has no maps; one with tiles has a
            map over each of them.
        template: how the prompts were written, and so with what answers end; None: the processor's own.

    Returns:
        B answers.
    """
    check_eval(model)
    if reduce not in ("mean", None):
        raise LitEveError(f"attend: reduce is 'mean' or None, not {reduce!r}")
    prompt = inputs["input_ids"].shape[1]
    with AttentionRecorder(model, layers, heads) as recorder:
        stop = stop_arguments(model, processor, prompt, template)
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, **stop}
        output = model.generate(**inputs, **settings)
    special = set(processor.tokenizer.all_special_ids)
    answers = []
    for row, (part, keys) in enumerate(_rows_of(model, inputs)):
        written = output[row, prompt:] if len(output) == 1 else _without_padding(output[row, prompt:], stop, model)
        steps = [step for step, token in enumerate(written.tolist()) if token not in special] or [0]
        # Each step has one more key than the one before: what is made of them is not.
        looked = [
            torch.stack([recorder.calls(layer)[step][row : row + 1, :, 0, keys:] for layer in recorder.layers], 1)
            for step in steps
        ]  # (1, L, h, K)
        per_token = [maps_of(model, part, weights.mean((1, 2)) if reduce else weights) for weights in looked]
        slots = part["input_ids"][0] == model.config.image_token_id  # (T,)
        answers.append(
            AnswerAttention(
                answer=without_end(processor.tokenizer.decode(written, skip_special_tokens=True), processor, template),
                tokens=[processor.tokenizer.decode(written[step]) for step in steps],
                maps=[torch.stack(maps) for maps in zip(*per_token, strict=True)],
                image_share=torch.stack([weights[0, ..., : len(slots)][..., slots].sum(-1) for weights in looked]),
                entropy=torch.stack([torch.special.entr(weights[0]).sum(-1) for weights in looked]),
                layers=recorder.layers,
                heads=recorder.heads,
                inputs=part,
                token_ids=written,
                steps=steps,
            )
        )
    return answers


def _rows_of(model: EveForConditionalGeneration, inputs: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], int]]:
    """The prompts of a batch one by one, each with its images and without its padding, and how much padding that was."""
    ids = inputs["input_ids"]
    if len(ids) == 1:
        yield dict(inputs), 0
        return
    grids = inputs["image_grid_hw"]
    slots = (ids == model.config.image_token_id).sum(1).cumsum(0)  # (B,)
    row_of_image = torch.bucketize(model.geometry.num_tokens_of_grid(grids).cumsum(0), slots)  # (N,)
    row_of_patch = row_of_image.repeat_interleave(grids.prod(-1))  # (P,)
    lengths = inputs["attention_mask"].sum(1).tolist()
    for row, length in enumerate(lengths):
        part = {
            "input_ids": ids[row : row + 1, ids.shape[1] - length :],
            "attention_mask": inputs["attention_mask"][row : row + 1, ids.shape[1] - length :],
            "pixel_values": inputs["pixel_values"][row_of_patch == row],
            "image_grid_hw": grids[row_of_image == row],
        }
        yield part, ids.shape[1] - length


def _without_padding(written: Tensor, stop: Mapping[str, Any], model: EveForConditionalGeneration) -> Tensor:
    """What a row of a batch wrote, up to its end; it is padded while others go on."""
    ends = stop["eos_token_id"]
    ends = torch.tensor([] if ends is None else ends, device=written.device, dtype=written.dtype).flatten()
    is_end = torch.isin(written, ends).nonzero()
    if len(is_end):
        return written[: int(is_end[0]) + 1]
    padding = model.generation_config.pad_token_id  # a text ended the row
    kept = (written != padding).nonzero()
    return written[: int(kept[-1]) + 1] if len(kept) else written[:1]


def question_inputs(
    model: EveForConditionalGeneration, processor: EveProcessor, images: Sequence[ImageSource], question: str
) -> dict[str, Tensor]:
    """What the model is given for a question about images, on its device.

    Raises:
        LitEveError: the geometry does not show a photo whole.
    """
    opened = [load_image(image) for image in images]
    check_whole(model.geometry, opened)
    content = [*({"type": "image", "image": image} for image in opened), {"type": "text", "text": question}]
    return processor(conversation=[{"role": "user", "content": content}]).to(model.device)
