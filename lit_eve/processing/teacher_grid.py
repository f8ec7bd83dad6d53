"""How a teacher's patches lie on the student's tokens, and the square that the teacher sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image

from lit_eve.errors import ConfigError
from lit_eve.processing.geometries import Grid, ImageGeometry
from lit_eve.processing.images import CLIP_MEAN


@dataclass(frozen=True)
class TeacherGrid:
    """The square patches of a teacher that sees square images.

    The image, scaled so that its longest side fills the square, lies in the middle of a canvas of the mean colour (EVE, arXiv
    2406.11832, section 3.2). Each patch inside it covers k x k tokens of the student.

    Args:
        image_size: side of the square in pixels, C.
        patch_size: side of a patch in pixels.
        mean: colour around an image, in 0..1: what the teacher subtracts from its pixels.

    Raises:
        ConfigError: the square is not made of whole patches.
    """

    image_size: int
    patch_size: int
    mean: tuple[float, float, float] = CLIP_MEAN

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(f"a teacher whose images have {self.image_size} pixels has no whole patches of {self.patch_size}")

    @property
    def side(self) -> int:
        """Patches along a side of the square."""
        return self.image_size // self.patch_size

    def tokens_per_patch(self, geometry: ImageGeometry) -> int:
        """k, tokens along a side of a teacher patch: 1 for EVE-7B, 2 for HD.

        Raises:
            ConfigError: this grid does not lie on the student's.
        """
        longest = None if geometry.many_views else geometry.longest_side
        what = f"the teacher's grid of {self.side} x {self.side} patches does not lie on the student's"
        if longest is None:
            name = geometry.to_dict()["name"]
            found = "a photo has several views" if geometry.many_views else "the longest sides of images are not all the same"
            raise ConfigError(f"{what}: with the geometry {name!r}, {found}")
        k, rest = divmod(longest, self.side)
        if rest or not k:
            raise ConfigError(f"{what}: the longest side of an image has {longest} tokens, no multiple of {self.side}")
        if geometry.side_step % k:
            raise ConfigError(
                f"{what}: a patch would cover {k} x {k} tokens, but the sides of an image are multiples of "
                f"{geometry.side_step} tokens"
            )
        return k

    def grid_of(self, image_grid_hw: Grid, geometry: ImageGeometry) -> Grid:
        """Rows and columns of teacher patches inside the images (..., 2), of patch grids (..., 2)."""
        return geometry.token_grid_of(image_grid_hw) // self.tokens_per_patch(geometry)

    def offset_of(self, image_grid_hw: Grid, geometry: ImageGeometry) -> Grid:
        """Patches of padding above and left of the image (..., 2), of patch grids (..., 2)."""
        return (self.side - self.grid_of(image_grid_hw, geometry)) // 2

    def canvas(self, image: Image.Image, geometry: ImageGeometry) -> torch.Tensor:
        """The square that the teacher sees of an RGB image.

        Args:
            image: of any size.
            geometry: of the student.

        Returns:
            uint8 (3, C, C).
        """
        grid = geometry.patch_grids(*image.size)[0]
        rows, cols = self.grid_of(np.array(grid), geometry).tolist()
        top, left = self.offset_of(np.array(grid), geometry).tolist()
        canvas = Image.new("RGB", (self.image_size, self.image_size), tuple(int(255 * value) for value in self.mean))
        size = cols * self.patch_size, rows * self.patch_size
        canvas.paste(
            geometry.frame(image).resize(size, Image.Resampling.BICUBIC), (left * self.patch_size, top * self.patch_size)
        )
        return torch.from_numpy(rearrange(np.asarray(canvas), "y x c -> c y x").copy())
