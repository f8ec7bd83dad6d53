"""Images at their own size, up to a longest side (SOLO, arXiv 2407.06438: its ``get_resize_output_image_size``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_eve.errors import ConfigError
from lit_eve.processing.geometries.base import GEOMETRIES, ImageGeometry, checked_size


@GEOMETRIES.register("longest_side")
@dataclass(frozen=True)
class LongestSideGeometry(ImageGeometry):
    """The longer side is rounded up to whole tokens, at most ``max_side``; the other follows it, and is rounded up too.

    SOLO's linear patches have 32 x 32 pixels; it resamples bilinearly, and this as all geometries.

    Args:
        patch_size, pool_size, class_token, split_token: as in every geometry.
        max_side: longest side of an image in pixels.

    Raises:
        ConfigError: a size is no positive integer, or ``max_side`` is not made of whole tokens.
    """

    patch_size: int = 32
    pool_size: int = 1
    max_side: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_side % self.token_size:
            raise ConfigError(
                f"geometry.max_side = {self.max_side} must be a multiple of the patch_size * pool_size = {self.token_size} "
                "of a token"
            )

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels, whole tokens."""
        width, height = checked_size(width, height)
        longest = min(self._whole(max(width, height)), self.max_side)
        other = self._whole(max(longest * min(width, height) // max(width, height), 1))
        return (longest, other) if width >= height else (other, longest)

    def _whole(self, side: int) -> int:
        return math.ceil(side / self.token_size) * self.token_size
