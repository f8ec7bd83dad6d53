"""What falls on an image's tokens, laid out as the image is.

Notation: B rows, T tokens per row, K key positions, N images, H x W token grid of an image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lit_eve.models.splice import ImageLayout

if TYPE_CHECKING:
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
    grids = geometry.token_grid_of(image_grid_hw).tolist()
    parts = by_token.split([rows * columns for rows, columns in grids])
    return [part.unflatten(0, grid).movedim((0, 1), (-2, -1)) for part, grid in zip(parts, grids, strict=True)]
