"""Where a model looked when it wrote a word of an answer, and which patches the word rests on.

The answer is read again: that costs less than to record while it is written, for words that nobody may ask about, and takes
drawn answers too.

Notation: S tokens of a word, L layers, h heads, N images, H x W token grid of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation import AttentionRecorder, WrittenAnswer, blank_patches
from lit_eve.interpretation.maps import maps_of
from lit_eve.interpretation.samples import check_whole
from lit_eve.interpretation.teacher_forcing import ForcedAnswer
from lit_eve.processing.inputs import images_of

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


@dataclass(frozen=True)
class Attention:
    """How much each layer and head looked at each place of the images, the mean over a word's tokens.

    Attributes:
        maps: for each of the N images (L, h, H, W) float32.
    """

    maps: list[Tensor]

    @property
    def layers(self) -> int:
        return self.maps[0].shape[0]

    @property
    def heads(self) -> int:
        return self.maps[0].shape[1]

    def of(self, layer: int | None, head: int | None) -> list[Tensor]:
        """(H, W) for each image.

        Args:
            layer, head: from 1; None: the mean over all.

        Raises:
            LitEveError: there is no such one.
        """
        chosen = []
        for what, index, count in (("layer", layer, self.layers), ("head", head, self.heads)):
            if index is not None and not 1 <= index <= count:
                raise LitEveError(f"there is no {what} {index}: this model has {count}")
            chosen.append(slice(None) if index is None else slice(index - 1, index))
        return [map[chosen[0], chosen[1]].mean((0, 1)) for map in self.maps]


def written_word(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    messages: Sequence[Mapping[str, Any]],
    ids: Sequence[int],
    steps: Sequence[int],
) -> WrittenAnswer:
    """A word of an answer as what all that is read again.

    Args:
        messages: the conversation up to the question, with open images.
        ids: all tokens of the answer.
        steps: which of them the word is made of.

    Raises:
        LitEveError: there is no image, the geometry does not show one whole, or there are no such tokens.
    """
    if not steps or not all(0 <= step < len(ids) for step in steps):
        raise LitEveError("this word was not generated")
    inputs = processor(conversation=messages).to(model.device)
    if not len(inputs["image_grid_hw"]):
        raise LitEveError("there is no image to look at in this conversation")
    check_whole(model.geometry, images_of(messages))
    tokens = [processor.tokenizer.decode(ids[step]) for step in steps]
    return WrittenAnswer(tokens, dict(inputs), torch.tensor(ids, device=model.device), sorted(steps))


@torch.inference_mode()
def attention_of(model: EveForConditionalGeneration, word: WrittenAnswer) -> Attention:
    """The attention of the positions that predicted the word.

    Raises:
        LitEveError: the model's attention cannot be recorded.
    """
    forced = ForcedAnswer.of(model, word)
    images = {key: word.inputs[key] for key in ("pixel_values", "image_grid_hw")}
    with AttentionRecorder(model, rows=forced.positions.tolist()) as recorder:
        model(input_ids=forced.input_ids, **images, use_cache=False, logits_to_keep=1)
        layers = torch.stack([recorder.calls(layer)[0] for layer in recorder.layers], 1)  # (1, L, h, S, K)
    maps = maps_of(model, {**images, "input_ids": forced.input_ids}, layers)
    return Attention([map.mean(2).cpu() for map in maps])


def causes_of(model: EveForConditionalGeneration, word: WrittenAnswer, between: Callable[[], None]) -> list[Tensor]:
    """How much the word's log-probability falls with each patch that is blanked: (H, W) for each of the N images, in nats.

    Args:
        between: called after each of the many forward passes.
    """
    blanked = blank_patches(model, word, progress=None, between=between)
    return [blanked.drop(image=image).cpu() for image in range(len(blanked.blanked))]
