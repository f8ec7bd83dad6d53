"""Where a model looked when it wrote a word of an answer.

The answer is read again, in one pass over prompt and answer: that costs less than to record while it is written, for words that
nobody may ask about, and takes sampled answers too.

Notation: S tokens of a word, L layers, h heads, N images, H x W token grid of an image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation import AttentionRecorder, image_maps

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


@torch.inference_mode()
def attention_at(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    messages: Sequence[Mapping[str, Any]],
    ids: Sequence[int],
    steps: Sequence[int],
) -> Attention:
    """The attention of the positions that predicted some tokens of an answer.

    Args:
        messages: the conversation up to the question, with open images.
        ids: all tokens of the answer.
        steps: which of them.

    Raises:
        LitEveError: there is no image, there are no such tokens, or the model's attention cannot be recorded.
    """
    if not steps or not all(0 <= step < len(ids) for step in steps):
        raise LitEveError("this word was not generated")
    inputs = processor(conversation=messages).to(model.device)
    if not len(inputs["image_grid_hw"]):
        raise LitEveError("there is no image to look at in this conversation")
    prompt = inputs["input_ids"]  # (1, T)
    answer = torch.tensor(ids[: max(steps)], dtype=torch.int64, device=model.device)[None]  # what the last of them saw
    tokens = torch.cat([prompt, answer], dim=1)
    rows = [prompt.shape[1] - 1 + step for step in steps]
    images = {key: inputs[key] for key in ("pixel_values", "image_grid_hw")}
    with AttentionRecorder(model, rows=rows) as recorder:
        model(input_ids=tokens, **images, use_cache=False, logits_to_keep=1)
        layers = torch.stack([recorder.calls(layer)[0] for layer in recorder.layers], 1)  # (1, L, h, S, K)
    place: dict[str, Any] = {"geometry": model.geometry, "image_token_id": model.config.image_token_id}
    return Attention([map.mean(2).cpu() for map in image_maps(layers, tokens, images["image_grid_hw"], **place)])
