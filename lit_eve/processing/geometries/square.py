"""Every image becomes a square of one size, as CLIP and the vision encoders of LLaVA-1.5 want it (arXiv 2310.03744)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from lit_eve.errors import ConfigError
from lit_eve.processing.geometries.base import GEOMETRIES, ImageGeometry, check_colour, checked_size


@dataclass(frozen=True)
class SquareViews(ImageGeometry):
    """What geometries have in common whose views are squares of one size.

    Args:
        image_size: side of a square in pixels.

    Raises:
        ConfigError: a size is no positive integer, or a square is not made of whole tokens.
    """

    class_token: bool = False
    split_token: bool = False
    image_size: int = 336

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.token_size:
            raise ConfigError(
                f"geometry.image_size = {self.image_size} must be a multiple of the patch_size * pool_size = "
                f"{self.token_size} of a token"
            )

    @property
    def longest_side(self) -> int:
        """Tokens along a side of a square."""
        return self.image_size // self.token_size

    @property
    def side_step(self) -> int:
        """All squares are the same."""
        return self.longest_side


@GEOMETRIES.register("square")
@dataclass(frozen=True)
class SquareGeometry(SquareViews):
    """A fixed number of tokens, whatever the photo.

    Args:
        patch_size, pool_size, class_token, split_token: as in every geometry.
        image_size: side of the square in pixels.
        fit: ``pad`` puts the whole photo in the middle of a square (LLaVA-1.5), ``crop`` takes the middle of it (CLIP),
            ``stretch`` changes its aspect ratio.
        background: colour beside a padded photo, in 0..255; LLaVA's and EVE's is CLIP's mean.

    Raises:
        ConfigError: a size is no positive integer, the square is not made of whole tokens, or there is no such fit.
    """

    FITS: ClassVar[tuple[str, ...]] = ("pad", "crop", "stretch")

    pool_size: int = 1
    fit: str = "pad"
    background: tuple[int, int, int] = (122, 116, 104)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "background", check_colour(self.background))
        if self.fit not in self.FITS:
            raise ConfigError(f"geometry.fit must be one of {', '.join(self.FITS)}, got {self.fit!r}")

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """The square's (width, height)."""
        checked_size(width, height)
        return self.image_size, self.image_size

    def views(self, image: Image.Image, images: int = 1) -> list[Image.Image]:
        """The square. Where it is cut out, the whole photo is resized before, as by CLIP's image processor."""
        if self.fit != "crop":
            return super().views(image, images)
        side, shortest = self.image_size, min(checked_size(*image.size))
        width, height = (side * length // shortest for length in image.size)
        left, top = (width - side) // 2, (height - side) // 2
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return [resized.crop((left, top, left + side, top + side))]

    def frame(self, image: Image.Image) -> Image.Image:
        """The square around the photo, or in it."""
        width, height = checked_size(*image.size)
        if self.fit == "stretch" or width == height:
            return image
        side = max(width, height) if self.fit == "pad" else min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        if self.fit == "crop":
            return image.crop((left, top, left + side, top + side))
        square = Image.new("RGB", (side, side), self.background)
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        return square
