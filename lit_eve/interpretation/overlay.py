"""From attention over tokens to heat maps over images.

Notation: B rows, T tokens per row, N images, H x W token grid of an image, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.recorder import AttentionRecorder
from lit_eve.models.generation.answer_ends import stop_arguments, without_end
from lit_eve.models.splice import ImageLayout
from lit_eve.processing.images import load_image
from lit_eve.processing.sources import ImageSource

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor, ImageGeometry


def image_maps(
    attention: Tensor, input_ids: Tensor, image_grid_hw: Tensor, geometry: ImageGeometry, image_token_id: int
) -> list[Tensor]:
    """The part of an attention row that falls on each image, laid out as the image is.

    Args:
        attention: (B, K) of one query per row over at least the T tokens of ``input_ids``; what lies behind them is ignored.
        input_ids: (B, T).
        image_grid_hw: (N, 2) in patches.

    Returns:
        N maps (H, W); class and split tokens are left out, so that a map does not add up to the row's attention on the image.
    """
    patches = int(image_grid_hw.prod(-1).sum())
    layout = ImageLayout.of(input_ids, image_grid_hw, patches, geometry, image_token_id)
    values = attention[:, : input_ids.shape[1]].flatten()[layout.token_position]  # (Q,)
    grids = geometry.token_grid_of(image_grid_hw).tolist()
    maps = values.split([rows * columns for rows, columns in grids])
    return [part.view(*grid) for part, grid in zip(maps, grids, strict=True)]


@dataclass(frozen=True)
class AnswerAttention:
    """An answer, and where the model looked when it wrote it."""

    answer: str
    tokens: list[str]
    """The A answer tokens as text, without the end of the turn (which stands alone if the answer is empty)."""
    maps: list[Tensor]
    """For each of the N images (A, H, W): attention of the position that predicts each token, averaged over the recorded layers
    and heads."""

    def total(self, image: int = 0) -> Tensor:
        """(H, W): the mean over the answer's tokens for one image."""
        return self.maps[image].mean(0)


@torch.no_grad()
def attend(
    model: EveForConditionalGeneration,
    processor: EveProcessor,
    images: Sequence[ImageSource],
    question: str,
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    max_new_tokens: int = 32,
) -> AnswerAttention:
    """Answer a question greedily and record the attention on the way.

    Args:
        images: seen before the question.
        question: what the user asks.
        layers, heads: averaged over these; None: all.

    Raises:
        LitEveError: there is no image.
    """
    if not images:
        raise LitEveError("attend: there is no image to look at")
    content = [*({"type": "image", "image": load_image(image)} for image in images), {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    ).to(model.device)
    with AttentionRecorder(model, layers, heads) as recorder:
        stop = stop_arguments(model, processor, inputs["input_ids"].shape[1])
        settings = {"max_new_tokens": max_new_tokens, "do_sample": False, **stop}
        output = model.generate(**inputs, **settings)
    written = output[0, inputs["input_ids"].shape[1] :]
    special = set(processor.tokenizer.all_special_ids)
    kept = [step for step, token in enumerate(written.tolist()) if token not in special] or [0]
    grids: dict[str, Any] = {"geometry": model.geometry, "image_token_id": model.config.image_token_id}
    per_token = [image_maps(recorder.mean(step)[:, 0], inputs["input_ids"], inputs["image_grid_hw"], **grids) for step in kept]
    return AnswerAttention(
        answer=without_end(processor.tokenizer.decode(written, skip_special_tokens=True), processor),
        tokens=[processor.tokenizer.decode(written[step]) for step in kept],
        maps=[torch.stack(maps) for maps in zip(*per_token, strict=True)],
    )


def overlay(
    image: ImageSource, heat: Tensor, *, size: int | None = None, opacity: float = 0.7, colormap: str = "inferno"
) -> Image.Image:
    """The image, in grey, under its heat map.

    Args:
        image: what the model saw.
        heat: (H, W), any non-negative scale: the largest value gets the brightest colour.
        size: longest side of the result in pixels; default: the image's.
        opacity: of the heat map.
        colormap: name of a matplotlib colour map.

    Returns:
        An RGB image; the heat map is interpolated between the centres of the token cells.
    """
    from matplotlib import colormaps

    image = load_image(image).convert("L")
    if size is not None:
        scale = size / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.NEAREST)
    values = heat.detach().float().cpu()
    values = values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
    smooth = Image.fromarray(values.numpy()).resize(image.size, Image.Resampling.BILINEAR)
    colours = colormaps[colormap](np.asarray(smooth))[..., :3] * 255  # (y, x, 3)
    blended = (1 - opacity) * np.asarray(image)[..., None] + opacity * colours
    return Image.fromarray(blended.round().astype(np.uint8))
