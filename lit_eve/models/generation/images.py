"""What generation needs beyond transformers' own machinery."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.models.splice import enumerate_segments
from lit_eve.processing.geometries import ImageGeometry


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
    row_of_image = _rows_of(input_ids, image_grid_hw, geometry, image_token_id)  # (N,)
    images_of_row = torch.bincount(row_of_image, minlength=len(input_ids)).tolist()
    images = torch.arange(len(image_grid_hw), device=image_grid_hw.device).split(images_of_row)
    order = torch.cat([row.repeat(times) for row in images])  # (times * N,)
    return _take(order, times * len(pixel_values), pixel_values, image_grid_hw)


def images_of_slots(
    input_ids: Tensor,
    last: int,
    pixel_values: Tensor,
    image_grid_hw: Tensor,
    geometry: ImageGeometry,
    image_token_id: int,
) -> dict[str, Tensor]:
    """The images whose slots are among the last tokens: those before them are in the KV cache.

    Args:
        input_ids: (B, T), all tokens that are known.
        last: how many of them are to be read.
        pixel_values: (P, 3 * p * p), of the images of all tokens, or of the last ones alone.
        image_grid_hw: (N, 2).

    Returns:
        ``pixel_values`` and ``image_grid_hw`` of those; empty if there are no slots.

    Raises:
        LitEveError: the last tokens begin inside an image.
    """
    is_slot = input_ids == image_token_id  # (B, T)
    slots = geometry.num_tokens_of_grid(image_grid_hw)  # (N,)
    rest = is_slot[:, input_ids.shape[1] - last :]
    if rest.sum() == slots.sum() or is_slot.sum() != slots.sum():  # all of them; or a mistake, which the model names
        return {"pixel_values": pixel_values, "image_grid_hw": image_grid_hw}
    row = _rows_of(input_ids, image_grid_hw, geometry, image_token_id)  # (N,)
    slots_of_row = is_slot.sum(1)  # (B,)
    first_of_row = slots_of_row.cumsum(0) - slots_of_row
    end = slots.cumsum(0) - first_of_row[row]  # (N,) last slot + 1 of each image, counted in its row
    cached = (slots_of_row - rest.sum(1))[row]  # (N,)
    is_new = end > cached
    if (is_new & (end - slots < cached)).any():
        raise LitEveError("the KV cache ends inside an image: continue from a place between images")
    order = is_new.nonzero().flatten()
    return _take(order, int(image_grid_hw[order].prod(1).sum()), pixel_values, image_grid_hw)


def _rows_of(input_ids: Tensor, image_grid_hw: Tensor, geometry: ImageGeometry, image_token_id: int) -> Tensor:
    """(N,): the row in which each image stands."""
    slots_of_row = (input_ids == image_token_id).sum(1).cumsum(0)  # (B,)
    last_slot_of_image = geometry.num_tokens_of_grid(image_grid_hw).cumsum(0)  # (N,)
    return torch.searchsorted(slots_of_row, last_slot_of_image)


def _take(order: Tensor, total: int, pixel_values: Tensor, image_grid_hw: Tensor) -> dict[str, Tensor]:
    """Images by their index ``order`` (M,), which have ``total`` patches."""
    patches = image_grid_hw.prod(1)  # (N,) of each image
    taken, offset = enumerate_segments(patches[order], total)
    first_patch = (patches.cumsum(0) - patches)[order]  # (M,)
    return {"pixel_values": pixel_values[first_patch[taken] + offset], "image_grid_hw": image_grid_hw[order]}
