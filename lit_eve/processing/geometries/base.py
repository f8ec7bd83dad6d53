"""What every geometry knows: the sizes that an image is brought to, its token grid, and its slots in the text.

    photo (any size) -> views (usually one), resized -> patches -> pooling windows = tokens -> slots in the text

Widths come first in pixels (as in Pillow), rows come first in grids (as in tensors).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from PIL import Image

from lit_eve.errors import ConfigError
from lit_eve.registry import Registry

Grid = TypeVar("Grid")  # a numpy array or torch tensor of integers (..., 2)


@dataclass(frozen=True)
class ImageGeometry(ABC):
    """Sizes that everything about an image follows from. A variant says how a photo is resized.

    A variant is a frozen dataclass, registered by name. It has :meth:`resized`, and says with ``side_step`` and
    ``longest_side`` what holds for all its token grids. One that pads or crops replaces :meth:`frame`; one that cuts a photo
    into several views, :meth:`view_sizes` and :meth:`views`.

    Args:
        patch_size: side of a patch in pixels: kernel and stride of the patch embedding's first convolution.
        pool_size: a window of ``pool_size`` x ``pool_size`` patches becomes one token.
        class_token: one token for the whole view stands before all others.
        split_token: one token ends every row, so that the language model can tell the view's shape.

    Raises:
        ConfigError: a size is no positive integer.
    """

    patch_size: int = 14
    pool_size: int = 2
    class_token: bool = True
    split_token: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigError(f"geometry.{field.name} must be a positive integer, got {value!r}")

    # ---- what a variant says

    @abstractmethod
    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels of the image that the student sees, whole tokens along both sides.

        Args:
            width, height: of the photo, in pixels.
            images: photos of the same sample, where they share a budget.

        Raises:
            ConfigError: there is no image of such a size.
        """

    @property
    def side_step(self) -> int:
        """Rows and columns of every token grid are multiples of it."""
        return 1

    @property
    def longest_side(self) -> int | None:
        """Tokens along the longer side of every view; None if that differs from photo to photo."""
        return None

    @property
    def many_views(self) -> bool:
        """Whether a photo can have several views."""
        return False

    # ---- facts about every image

    @property
    def token_size(self) -> int:
        """Side of a token (a pooling window) in pixels of the student's image."""
        return self.patch_size * self.pool_size

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: 3 * patch_size^2."""
        return 3 * self.patch_size**2

    @property
    def window_dim(self) -> int:
        """Numbers in the pixels of one token: those of the ``pool_size ** 2`` patches of its window."""
        return self.pool_size**2 * self.patch_dim

    # ---- one photo

    def view_sizes(self, width: int, height: int, images: int = 1) -> list[tuple[int, int]]:
        """(width, height) in pixels of each view of a photo."""
        return [self.resized(width, height, images)]

    def frame(self, image: Image.Image) -> Image.Image:
        """The part of an RGB photo that is seen, or the canvas that it is put on; its view is the same as the photo's."""
        return image

    def views(self, image: Image.Image, images: int = 1) -> list[Image.Image]:
        """What the student sees of an RGB photo, in the order of its slots; Pillow's bicubic on the whole frame."""
        return [self.frame(image).resize(self.resized(*image.size, images), Image.Resampling.BICUBIC)]

    def shows_whole(self, image: Image.Image, images: int = 1) -> bool:
        """Whether the only view is all of an RGB photo, and nothing else: a map over the view is one over the photo."""
        return self.frame(image).size == image.size and len(self.view_sizes(*image.size, images)) == 1

    def patch_grids(self, width: int, height: int, images: int = 1) -> list[tuple[int, int]]:
        """(rows, columns) of patches of each view, before pooling: what ``image_grid_hw`` holds."""
        return [(high // self.patch_size, wide // self.patch_size) for wide, high in self.view_sizes(width, height, images)]

    def token_grids(self, width: int, height: int, images: int = 1) -> list[tuple[int, int]]:
        """(H, W) of each view: rows and columns of tokens, after pooling."""
        return [(high // self.token_size, wide // self.token_size) for wide, high in self.view_sizes(width, height, images)]

    def num_tokens(self, width: int, height: int, images: int = 1) -> int:
        """Slots that a photo takes in the text: per view H rows of W tokens and a split token, and the class token."""
        return sum(
            rows * (cols + self.split_token) + self.class_token for rows, cols in self.token_grids(width, height, images)
        )

    def settled(self, image: Image.Image) -> Image.Image:
        """The photo as small as it can be kept: the student sees the very same pixels of it, among whatever other photos."""
        size = self.resized(*image.size)
        alike = all(
            self.view_sizes(*image.size, images) == self.view_sizes(*size, images) == [size] for images in (1, 2, MANY_IMAGES)
        )
        return self.views(image)[0] if alike else image

    # ---- many views, from their patch grids (arrays or tensors, no loop, no sync)

    def token_grid_of(self, image_grid_hw: Grid) -> Grid:
        """Token grids (..., 2) of patch grids (..., 2)."""
        return image_grid_hw // self.pool_size

    def num_tokens_of_grid(self, image_grid_hw: Grid) -> Grid:
        """Token counts (...) of patch grids (..., 2)."""
        grid = self.token_grid_of(image_grid_hw)
        return grid[..., 0] * (grid[..., 1] + int(self.split_token)) + int(self.class_token)

    # ---- saving

    def to_dict(self) -> dict[str, Any]:
        """``{"name": ..., **arguments}``, as in a YAML or ``config.json``."""
        return {"name": GEOMETRIES.name_of(type(self)), **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageGeometry:
        """The geometry of a YAML or ``config.json``; without a name it is EVE v1's.

        Raises:
            ConfigError: an unknown name or key, or sizes that cannot work.
        """
        values = named_geometry(values)
        known = [field.name for field in fields(GEOMETRIES[values["name"]])]
        for key in values:
            if key != "name" and key not in known:
                raise ConfigError(f"geometry {values['name']!r} has no key {key!r}; it takes: {', '.join(known)}")
        return GEOMETRIES.build(values)


MANY_IMAGES = 100

GEOMETRIES: Registry[ImageGeometry] = Registry("geometry")
"""Frozen dataclasses, subclasses of :class:`ImageGeometry`."""


def named_geometry(values: Mapping[str, Any]) -> dict[str, Any]:
    """The spec of a geometry, with its name, in the words of today.

    Until there were several geometries, EVE v1's had no name, and told the cells of its longest side by the teacher's sizes.
    """
    values = {"name": "eve_v1", **values}
    if values["name"] == "eve_v1" and {"teacher_image_size", "teacher_patch_size"} & values.keys():
        sizes = [values.pop(f"teacher_{key}", default) for key, default in (("image_size", 336), ("patch_size", 14))]
        if not all(isinstance(size, int) and size > 0 for size in sizes) or sizes[0] % sizes[1]:
            raise ConfigError(
                f"geometry.teacher_image_size = {sizes[0]!r} must be a multiple of geometry.teacher_patch_size = {sizes[1]!r}"
            )
        values["cells"] = sizes[0] // sizes[1]
    return values


def check_colour(background: Sequence[int]) -> tuple[int, int, int]:
    """The colour of ``geometry.background``, a list in YAML and JSON.

    Raises:
        ConfigError: it is no colour of three integers in 0..255.
    """
    if len(background) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in background):
        raise ConfigError(f"geometry.background must be three integers of 0 to 255, got {list(background)}")
    return tuple(background)


def checked_size(width: int, height: int) -> tuple[int, int]:
    """The size of a photo.

    Raises:
        ConfigError: a side is not positive.
    """
    if width < 1 or height < 1:
        raise ConfigError(f"an image of {width} x {height} pixels has no geometry")
    return width, height
