"""How large an image becomes, and how many tokens it gives (EVE, arXiv 2406.11832, section 3.1).

    photo (any size) -> resized (whole teacher patches) -> patches -> pooling windows = tokens -> slots in the text

The longest side becomes ``image_size``; the other keeps the aspect ratio, rounded *up* to whole teacher patches, so
that the region the student sees and the one the teacher sees are the same grid at two scales. Nothing is padded for the
student; the teacher, which wants a square, sees its region in the middle of a canvas of the mean colour.

Widths come first in pixels (as in Pillow), rows come first in grids (as in tensors).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from lit_eve.errors import ConfigError

Grid = TypeVar("Grid")  # a numpy array or torch tensor of integers (..., 2)


@dataclass(frozen=True)
class ImageGeometry:
    """The sizes that everything about an image follows from.

    Args:
        image_size: longest side of the student's image in pixels (EVE-7B: 672, HD: 1344).
        patch_size: side of a patch in pixels: kernel and stride of the patch embedding's convolution.
        pool_size: a window of ``pool_size`` x ``pool_size`` patches becomes one token.
        teacher_image_size: side of the square that the CLIP teacher sees.
        teacher_patch_size: side of a teacher patch in the teacher's pixels.
        class_token: one token for the whole image stands before all others.
        split_token: one token ends every row, so that the language model can tell the image's shape.

    Raises:
        ConfigError: a size is no positive integer, or two sizes that must divide do not.
    """

    image_size: int = 672
    patch_size: int = 14
    pool_size: int = 2
    teacher_image_size: int = 336
    teacher_patch_size: int = 14
    class_token: bool = True
    split_token: bool = True

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "pool_size", "teacher_image_size", "teacher_patch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"geometry.{name} must be a positive integer, got {value!r}")
        self._must_divide("image_size", self.image_size, "teacher_image_size", self.teacher_image_size)
        self._must_divide("teacher_image_size", self.teacher_image_size, "teacher_patch_size", self.teacher_patch_size)
        if self.cell_size % self.token_size:
            raise ConfigError(
                f"geometry: the teacher's grid does not divide the token grid: a teacher patch covers "
                f"teacher_patch_size * image_size / teacher_image_size = {self.cell_size} pixels of the image, "
                f"no multiple of the patch_size * pool_size = {self.token_size} pixels of a token"
            )

    @staticmethod
    def _must_divide(name: str, value: int, divisor_name: str, divisor: int) -> None:
        if value % divisor:
            raise ConfigError(f"geometry.{name} = {value} must be a multiple of geometry.{divisor_name} = {divisor}")

    # ---- facts about every image

    @property
    def ratio(self) -> int:
        """Pixels of the student's image per pixel of the teacher's, along a side."""
        return self.image_size // self.teacher_image_size

    @property
    def token_size(self) -> int:
        """Side of a token (a pooling window) in pixels of the student's image."""
        return self.patch_size * self.pool_size

    @property
    def cell_size(self) -> int:
        """Side of a teacher patch in pixels of the student's image; both sides of an image are multiples of it."""
        return self.teacher_patch_size * self.ratio

    @property
    def tokens_per_teacher_patch(self) -> int:
        """Tokens per teacher patch along a side: 1 for EVE-7B, 2 for HD, where predictions are pooled 2 x 2."""
        return self.cell_size // self.token_size

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch: 3 * patch_size^2."""
        return 3 * self.patch_size**2

    @property
    def max_tokens(self) -> int:
        """Tokens of a square image, the most that an image can give."""
        return self.num_tokens(1, 1)

    # ---- one image, from its size in pixels

    def teacher_grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of teacher patches that the image covers: the longest side in full, the other rounded up."""
        if width < 1 or height < 1:
            raise ConfigError(f"an image of {width} x {height} pixels has no geometry")
        side = self.teacher_image_size // self.teacher_patch_size
        if width > height:
            return -(-self.teacher_image_size * height // (width * self.teacher_patch_size)), side
        return side, -(-self.teacher_image_size * width // (height * self.teacher_patch_size))

    def teacher_offset(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of padding patches above and left of the image in the teacher's square."""
        rows, cols = self.teacher_grid(width, height)
        side = self.teacher_image_size // self.teacher_patch_size
        return (side - rows) // 2, (side - cols) // 2

    def teacher_resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of the image on the teacher's canvas."""
        rows, cols = self.teacher_grid(width, height)
        return cols * self.teacher_patch_size, rows * self.teacher_patch_size

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) in pixels of the image that the student sees."""
        rows, cols = self.teacher_grid(width, height)
        return cols * self.cell_size, rows * self.cell_size

    def patch_grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of patches, before pooling: what ``image_grid_hw`` holds."""
        rows, cols = self.teacher_grid(width, height)
        return rows * self.cell_size // self.patch_size, cols * self.cell_size // self.patch_size

    def token_grid(self, width: int, height: int) -> tuple[int, int]:
        """(H, W): rows and columns of tokens, after pooling."""
        rows, cols = self.teacher_grid(width, height)
        return rows * self.tokens_per_teacher_patch, cols * self.tokens_per_teacher_patch

    def num_tokens(self, width: int, height: int) -> int:
        """Slots that the image takes in the text: H rows of W tokens and a split token, and the class token."""
        rows, cols = self.token_grid(width, height)
        return rows * (cols + self.split_token) + self.class_token

    # ---- many images, from their patch grids (arrays or tensors, no loop, no sync)

    def token_grid_of(self, image_grid_hw: Grid) -> Grid:
        """Token grids (..., 2) of patch grids (..., 2)."""
        return image_grid_hw // self.pool_size

    def num_tokens_of_grid(self, image_grid_hw: Grid) -> Grid:
        """Token counts (...) of patch grids (..., 2)."""
        grid = self.token_grid_of(image_grid_hw)
        return grid[..., 0] * (grid[..., 1] + int(self.split_token)) + int(self.class_token)

    def teacher_grid_of(self, image_grid_hw: Grid) -> Grid:
        """Teacher grids (..., 2) of patch grids (..., 2)."""
        return image_grid_hw // (self.cell_size // self.patch_size)

    def teacher_offset_of(self, image_grid_hw: Grid) -> Grid:
        """Padding patches above and left of the image (..., 2) of patch grids (..., 2)."""
        return (self.teacher_image_size // self.teacher_patch_size - self.teacher_grid_of(image_grid_hw)) // 2

    # ---- saving

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageGeometry:
        """The geometry of a YAML or ``config.json``; an unknown key is a ConfigError."""
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"geometry has no key {key!r}; it takes: {', '.join(known)}")
        return cls(**values)
