"""Tiles of one size and a thumbnail (Mono-InternVL, arXiv 2410.08202; InternVL's ``dynamic_preprocess``)."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from lit_eve.processing.geometries.base import GEOMETRIES, checked_size
from lit_eve.processing.geometries.square import SquareViews


@GEOMETRIES.register("tiles")
@dataclass(frozen=True)
class TilesGeometry(SquareViews):
    """A photo is stretched to the grid of tiles that is nearest to its aspect ratio, and cut, row by row.

    Where there are several tiles, a thumbnail of the whole photo follows them. Each is a view with a token grid of its own.

    Args:
        patch_size, pool_size, class_token, split_token: as in every geometry.
        image_size: side of a tile in pixels.
        max_tiles: of a photo, without the thumbnail; photos of the same sample share them.
        thumbnail: whether there is one.

    Raises:
        ConfigError: a size is no positive integer, or a tile is not made of whole tokens.
    """

    image_size: int = 448
    max_tiles: int = 6
    thumbnail: bool = True

    @property
    def many_views(self) -> bool:
        """Several tiles."""
        return self.max_tiles > 1

    def tile_grid(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(rows, columns) of tiles.

        Of grids that are equally near, the smaller wins, unless the photo has more than half of the pixels of the larger.
        """
        width, height = checked_size(width, height)
        most = max(self.max_tiles // images, 1)
        grids = [(rows, cols) for rows in range(1, most + 1) for cols in range(1, most + 1) if rows * cols <= most]
        best, nearest = (1, 1), float("inf")
        for rows, cols in sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[1])):
            distance = abs(width / height - cols / rows)
            enough = width * height > 0.5 * self.image_size**2 * rows * cols
            if distance < nearest or (distance == nearest and enough):
                best, nearest = (rows, cols), distance
        return best

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels of all tiles together."""
        rows, cols = self.tile_grid(width, height, images)
        return cols * self.image_size, rows * self.image_size

    def view_sizes(self, width: int, height: int, images: int = 1) -> list[tuple[int, int]]:
        """(width, height) in pixels of each tile, and of the thumbnail."""
        rows, cols = self.tile_grid(width, height, images)
        return [(self.image_size, self.image_size)] * (rows * cols + (self.thumbnail and rows * cols > 1))

    def views(self, image: Image.Image, images: int = 1) -> list[Image.Image]:
        """The tiles, row by row, and the thumbnail."""
        size, (rows, cols) = self.image_size, self.tile_grid(*image.size, images)
        whole = image.resize((cols * size, rows * size), Image.Resampling.BICUBIC)
        boxes = [(col * size, row * size, (col + 1) * size, (row + 1) * size) for row in range(rows) for col in range(cols)]
        tiles = [whole.crop(box) for box in boxes]
        return tiles + [image.resize((size, size), Image.Resampling.BICUBIC)] * (self.thumbnail and len(tiles) > 1)
