"""EVE v1's geometry (arXiv 2406.11832, section 3.1; upstream EVEv1/eve/model/multimodal_encoder/vision_tokenizer.py)."""

from __future__ import annotations

from dataclasses import dataclass

from lit_eve.errors import ConfigError
from lit_eve.processing.geometries.base import GEOMETRIES, ImageGeometry, checked_size


@GEOMETRIES.register("eve_v1")
@dataclass(frozen=True)
class EveV1Geometry(ImageGeometry):
    """The longest side becomes ``image_size``; the other keeps the aspect ratio, rounded *up* to whole cells.

    A cell is the part of the image that one patch of the teacher covers, so that the region that the student sees and the one
    that the teacher sees are the same grid at two scales. Nothing is padded.

    Args:
        image_size: longest side of the student's image in pixels (EVE-7B: 672, HD: 1344).
        cells: cells along the longest side: as many as the teacher has patches there (CLIP-L/14-336: 24).
        patch_size, pool_size, class_token, split_token: as in every geometry.

    Raises:
        ConfigError: a size is no positive integer, or cells are not made of whole tokens.
    """

    image_size: int = 672
    cells: int = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.cells:
            raise ConfigError(f"geometry.image_size = {self.image_size} must be a multiple of geometry.cells = {self.cells}")
        if self.cell_size % self.token_size:
            raise ConfigError(
                f"geometry: a cell has image_size / cells = {self.cell_size} pixels, no multiple of the "
                f"patch_size * pool_size = {self.token_size} pixels of a token"
            )

    @property
    def cell_size(self) -> int:
        """Side of a cell in pixels of the student's image; both sides of an image are multiples of it."""
        return self.image_size // self.cells

    @property
    def side_step(self) -> int:
        """Tokens along a side of a cell: 1 for EVE-7B, 2 for HD."""
        return self.cell_size // self.token_size

    @property
    def longest_side(self) -> int:
        """Tokens along the longest side."""
        return self.image_size // self.token_size

    def cell_grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of cells that a photo takes: the longest side in full, the other rounded up."""
        width, height = checked_size(width, height)
        if width > height:
            return -(-self.cells * height // width), self.cells
        return self.cells, -(-self.cells * width // height)

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels, whole cells."""
        rows, cols = self.cell_grid(width, height)
        return cols * self.cell_size, rows * self.cell_size
