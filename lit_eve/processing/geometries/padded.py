"""Images at their own size on a canvas of whole tokens (Fuyu, adept.ai/blog/fuyu-8b: transformers' ``FuyuImageProcessor``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

from lit_eve.errors import ConfigError
from lit_eve.processing.geometries.base import GEOMETRIES, ImageGeometry, check_colour, checked_size


@GEOMETRIES.register("padded")
@dataclass(frozen=True)
class PaddedGeometry(ImageGeometry):
    """A larger image shrinks to fit, its aspect ratio kept; then it is filled up right and below to whole tokens.

    Args:
        patch_size, pool_size, class_token, split_token: as in every geometry.
        max_width, max_height: of what an image must fit into, in pixels.
        background: colour of what is filled up, in 0..255. Fuyu's processor fills up before it divides by 255, so that its
            padding of 1.0 is nearly black.

    Raises:
        ConfigError: a size is no positive integer, the largest image is not made of whole tokens, or ``background`` is no
            colour.
    """

    patch_size: int = 30
    pool_size: int = 1
    class_token: bool = False
    max_width: int = 1920
    max_height: int = 1080
    background: tuple[int, int, int] = (1, 1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "background", check_colour(self.background))
        for key in ("max_width", "max_height"):
            if getattr(self, key) % self.token_size:
                raise ConfigError(
                    f"geometry.{key} = {getattr(self, key)} must be a multiple of the patch_size * pool_size = "
                    f"{self.token_size} of a token"
                )

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels of the canvas."""
        wide, high = (math.ceil(side / self.token_size) * self.token_size for side in self._fitted(width, height))
        return wide, high

    def _fitted(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of the photo on the canvas."""
        checked_size(width, height)
        if width <= self.max_width and height <= self.max_height:
            return width, height
        factor = min(self.max_height / height, self.max_width / width)
        return max(int(width * factor), 1), max(int(height * factor), 1)

    def frame(self, image: Image.Image) -> Image.Image:
        """The canvas with the photo in its upper left corner, as the model sees it; Pillow's bilinear where it shrinks."""
        size = self._fitted(*image.size)
        canvas = Image.new("RGB", self.resized(*image.size), self.background)
        canvas.paste(image if size == image.size else image.resize(size, Image.Resampling.BILINEAR))
        return canvas

    def shows_whole(self, image: Image.Image, images: int = 1) -> bool:
        """Whether nothing had to be filled up."""
        return self._fitted(*image.size) == self.resized(*image.size)
