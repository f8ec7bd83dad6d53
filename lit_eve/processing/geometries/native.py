"""Images at their own size, in steps of a token (NEO, arXiv 2510.14979; Qwen2-VL, arXiv 2409.12191: ``smart_resize``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_eve.errors import ConfigError
from lit_eve.processing.geometries.base import GEOMETRIES, ImageGeometry, checked_size


@GEOMETRIES.register("native")
@dataclass(frozen=True)
class NativeGeometry(ImageGeometry):
    """Both sides are rounded to whole tokens; an image outside the bounds is brought inside, its aspect ratio kept.

    Args:
        patch_size, pool_size, class_token, split_token: as in every geometry.
        min_pixels: area that smaller images are enlarged to.
        max_pixels: area that larger images shrink to.
        shared: several photos of a sample share the bound, as in NEO: each has ``2 * max_pixels // photos``, and at least
            ``min_pixels``.

    Raises:
        ConfigError: a size is no positive integer, or the bounds hold no whole token.
    """

    patch_size: int = 16
    class_token: bool = False
    split_token: bool = False
    min_pixels: int = 65_536
    max_pixels: int = 4_194_304
    shared: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.token_size**2 <= self.max_pixels:
            raise ConfigError(f"geometry.max_pixels = {self.max_pixels} is less than a token of {self.token_size}^2 pixels")
        if self.min_pixels > self.max_pixels:
            raise ConfigError(f"geometry.min_pixels = {self.min_pixels} is more than geometry.max_pixels = {self.max_pixels}")

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels, whole tokens."""
        sides, step, most = checked_size(width, height), self.token_size, self.max_pixels
        if self.shared and images > 1:
            most = max(2 * most // images, self.min_pixels)
        rounded = [max(round(side / step), 1) * step for side in sides]
        if math.prod(rounded) > most:
            factor = math.sqrt(width * height / most)
            rounded = [max(math.floor(side / factor / step), 1) * step for side in sides]
        elif math.prod(rounded) < self.min_pixels:
            factor = math.sqrt(self.min_pixels / (width * height))
            rounded = [math.ceil(side * factor / step) * step for side in sides]
        return rounded[0], rounded[1]
