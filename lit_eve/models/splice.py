"""Where the tokens of each image stand in a batch: index arithmetic on the device, without a loop or a synchronisation.

The image slots of a batch, in the order of the flattened ``input_ids``, hold for each image: its class token, then each row of
its token grid followed by one split token. Everything here follows from the grids; the sizes that a kernel must know
beforehand come from the shapes of ``pixel_values`` and ``image_grid_hw``.

Notation: B rows, T tokens per row, N images, P patches, Q = P / pool^2 image tokens without class and split, M teacher cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.processing.geometries import ImageGeometry
from lit_eve.processing.teacher_grid import TeacherGrid


@dataclass(frozen=True)
class ImageLayout:
    """Positions of the image tokens of a batch; all tensors are on the device of ``image_grid_hw``."""

    is_image: Tensor  # (B * T,) bool, all image slots
    class_position: Tensor | None  # (N,) of each class token in the flattened B * T tokens; None without class tokens
    token_position: Tensor  # (Q,) of each image token in the flattened B * T tokens
    image_of_token: Tensor  # (Q,) int64, the image of each image token

    @classmethod
    def of(
        cls, input_ids: Tensor, image_grid_hw: Tensor, num_patches: int, geometry: ImageGeometry, image_token_id: int
    ) -> ImageLayout:
        """Locate the image tokens.

        Args:
            input_ids: (B, T) int64 with expanded image slots.
            image_grid_hw: (N, 2) int64, rows and columns in patches.
            num_patches: P.

        Raises:
            LitEveError: the number of image slots is not what the images need. Checked at once on the CPU; elsewhere the
                check runs on the device and surfaces at its next synchronisation.
        """
        grid = geometry.token_grid_of(image_grid_hw)  # (N, 2)
        image, offset = enumerate_segments(grid.prod(-1), num_patches // geometry.pool_size**2)  # (Q,), (Q,)
        columns = grid[image, 1]  # (Q,)
        row, column = offset // columns, offset % columns
        slots = geometry.num_tokens_of_grid(image_grid_hw)  # (N,)
        first_slot = slots.cumsum(0) - slots  # (N,)
        row_length = columns + int(geometry.split_token)
        token_slot = first_slot[image] + int(geometry.class_token) + row * row_length + column  # (Q,)

        is_image = (input_ids == image_token_id).flatten()  # (B * T,)
        check(is_image.sum() == slots.sum(), "the number of image slots in input_ids is not what the images need")
        # The inverse of the running count of slots; all text tokens write into the spare last place.
        size = len(is_image)
        position_of_slot = torch.zeros(size + 1, dtype=torch.long, device=input_ids.device)
        slot = torch.where(is_image, is_image.cumsum(0) - 1, size)
        position_of_slot.scatter_(0, slot, torch.arange(size, device=input_ids.device))
        return cls(
            is_image=is_image,
            class_position=position_of_slot[first_slot] if geometry.class_token else None,
            token_position=position_of_slot[token_slot],
            image_of_token=image,
        )


@dataclass(frozen=True)
class TeacherCells:
    """The teacher's patches inside the images of a batch, next to the decoder positions that must predict them."""

    image_of_cell: Tensor  # (M,) int64
    teacher_index: Tensor  # (M,) int64 into the teacher's flattened (N * side^2) patches
    positions: Tensor  # (M, k * k) int64 into the flattened B * T tokens: the image tokens that a teacher patch covers

    @classmethod
    def of(cls, layout: ImageLayout, image_grid_hw: Tensor, geometry: ImageGeometry, teacher: TeacherGrid) -> TeacherCells:
        """Match teacher patches with k x k image tokens, k = ``teacher.tokens_per_patch(geometry)``."""
        k = teacher.tokens_per_patch(geometry)
        grid = geometry.token_grid_of(image_grid_hw)  # (N, 2)
        cells = grid // k  # (N, 2)
        image, offset = enumerate_segments(cells.prod(-1), len(layout.token_position) // k**2)  # (M,), (M,)
        columns = cells[image, 1]
        row, column = offset // columns, offset % columns

        side = teacher.side
        padding = teacher.offset_of(image_grid_hw, geometry)[
            image
        ]  # (M, 2) rows above and columns left of the image on the square canvas
        teacher_index = (image * side + padding[:, 0] + row) * side + padding[:, 1] + column

        tokens = grid.prod(-1)  # (N,)
        first_token = (tokens.cumsum(0) - tokens)[image] + (row * k) * (columns * k) + column * k  # (M,) top left
        inner = torch.arange(k, device=grid.device)
        step = inner[:, None] * (columns * k)[:, None, None] + inner  # (M, k, k)
        token = first_token[:, None] + step.flatten(1)  # (M, k * k)
        return cls(image, teacher_index, layout.token_position[token])


def splice(text_embeds: Tensor, layout: ImageLayout, tokens: Tensor, classes: Tensor | None, split: Tensor | None) -> Tensor:
    """Put the image tokens into their slots.

    Args:
        text_embeds: (B, T, D); what stands at image slots is ignored and gets no gradient.
        tokens: (Q, D).
        classes: (N, D), or None without class tokens.
        split: (D,), or None without split tokens.

    Returns:
        (B, T, D).
    """
    shape = text_embeds.shape
    embeds = text_embeds.flatten(0, 1)  # (B * T, D)
    # How many split tokens there are is known on the device only, so they fill all slots and the others overwrite them.
    background = torch.zeros_like(embeds[:1]) if split is None else split
    embeds = torch.where(layout.is_image[:, None], background.to(embeds.dtype), embeds)
    positions, rows = layout.token_position, tokens
    if classes is not None:
        positions, rows = torch.cat([layout.class_position, positions]), torch.cat([classes, rows])
    return embeds.index_copy(0, positions, rows.to(embeds.dtype)).view(shape)


def enumerate_segments(counts: Tensor, total: int) -> tuple[Tensor, Tensor]:
    """For consecutive segments of ``counts`` (N,) elements: each element's segment and its offset there, (total,) each."""
    segments = torch.arange(len(counts), device=counts.device)
    segment = torch.repeat_interleave(segments, counts, output_size=total)
    starts = counts.cumsum(0) - counts
    return segment, torch.arange(total, device=counts.device) - starts[segment]


def starts_of_samples(rows: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Where the sample of each token begins, as a place in the flattened tokens: (B * T,) int64.

    Args:
        rows: (B, T) of anything.
        cu_seqlens: (S + 1,) boundaries of samples over the flattened tokens; None: a row is a sample.
    """
    place = torch.arange(rows.shape[0] * rows.shape[1], device=rows.device)
    if cu_seqlens is None:
        return place // rows.shape[1] * rows.shape[1]
    bounds = cu_seqlens.long()
    return bounds[torch.searchsorted(bounds, place, right=True) - 1]


def check(condition: Tensor, message: str) -> None:
    """Raise LitEveError(message) unless ``condition`` (0-dim bool) holds; off the CPU, without waiting for the device.

    A compiled graph cannot branch: there it is an assertion on every device.
    """
    if condition.device.type == "cpu" and not torch.compiler.is_compiling():
        if not condition:
            raise LitEveError(message)
    elif condition.device.type != "meta":
        torch._assert_async(condition, message)
