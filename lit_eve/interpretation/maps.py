"""What falls on an image's tokens, laid out as the image is.

Notation: B rows, T tokens per row, K key positions, N images, H x W token grid of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lit_eve.models.splice import ImageLayout

if TYPE_CHECKING:
    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import ImageGeometry


def image_maps(
    values: Tensor, input_ids: Tensor, image_grid_hw: Tensor, geometry: ImageGeometry, image_token_id: int
) -> list[Tensor]:
    """A number per token, as a map over each image: attention of one query per row, for example.

    Args:
        values: (B, ..., K) over at least the T tokens of ``input_ids``; what lies behind them is ignored. What stands between
            (layers, heads, queries) stays.
        input_ids: (B, T).
        image_grid_hw: (N, 2) in patches.

    Returns:
        N maps (..., H, W). Class and split tokens are left out, so that a map does not add up to all that falls on the image.
    """
    patches = int(image_grid_hw.prod(-1).sum())
    layout = ImageLayout.of(input_ids, image_grid_hw, patches, geometry, image_token_id)
    by_token = values[..., : input_ids.shape[1]].movedim(-1, 1).flatten(0, 1)[layout.token_position]  # (Q, ...)
    return [part.movedim((0, 1), (-2, -1)) for part in on_grids(by_token, geometry.token_grid_of(image_grid_hw))]


def on_grids(values: Tensor, grids: Tensor, axis: int = 0) -> list[Tensor]:
    """One axis of image tokens (or teacher patches), image after image, to the two axes of each image.

    Args:
        values: (..., Q, ...).
        grids: (N, 2) rows and columns of each image.
        axis: where Q is, from the front.

    Returns:
        N tensors (..., H, W, ...).
    """
    sizes = grids.tolist()
    parts = values.split([rows * columns for rows, columns in sizes], axis)
    return [part.unflatten(axis, size) for part, size in zip(parts, sizes, strict=True)]


def maps_of(model: EveForConditionalGeneration, inputs: Mapping[str, Tensor], values: Tensor) -> list[Tensor]:
    """:func:`image_maps` of what a model was given: ``input_ids`` and ``image_grid_hw`` are among ``inputs``."""
    return image_maps(values, inputs["input_ids"], inputs["image_grid_hw"], model.geometry, model.config.image_token_id)
