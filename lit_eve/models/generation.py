"""What generation needs beyond transformers' own machinery."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eve.models.splice import enumerate_segments
from lit_eve.processing.geometry import ImageGeometry


def repeat_images(
    input_ids: Tensor,
    pixel_values: Tensor,
    image_grid_hw: Tensor,
    times: int,
    geometry: ImageGeometry,
    image_token_id: int,
) -> dict[str, Tensor]:
    """Repeat the images of each row, for beam search and several answers per prompt (rows are repeated one by one).

    Runs once per call of ``generate``, on sizes that are read back from the device.

    Args:
        input_ids: (B, T) before the repetition.
        pixel_values: (P, 3 * p * p).
        image_grid_hw: (N, 2).
        times: how often each row will stand behind itself.

    Returns:
        ``pixel_values`` (times * P, 3 * p * p) and ``image_grid_hw`` (times * N, 2).
    """
    slots_of_row = (input_ids == image_token_id).sum(1).cumsum(0)  # (B,)
    last_slot_of_image = geometry.num_tokens_of_grid(image_grid_hw).cumsum(0)  # (N,)
    row_of_image = torch.searchsorted(slots_of_row, last_slot_of_image)  # (N,)
    images_of_row = torch.bincount(row_of_image, minlength=len(input_ids)).tolist()
    images = torch.arange(len(image_grid_hw), device=image_grid_hw.device).split(images_of_row)
    order = torch.cat([row.repeat(times) for row in images])  # (times * N,)
    patches = image_grid_hw.prod(1)  # (N,) of each image
    repeated, offset = enumerate_segments(patches[order], times * len(pixel_values))
    first_patch = (patches.cumsum(0) - patches)[order]  # (times * N,)
    return {"pixel_values": pixel_values[first_patch[repeated] + offset], "image_grid_hw": image_grid_hw[order]}
