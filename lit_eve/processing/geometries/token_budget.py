"""A budget of tokens per image, filled as far as whole tokens allow (Gemma 4: transformers' ``Gemma4ImageProcessor``)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lit_eve.processing.geometries.base import GEOMETRIES, ImageGeometry, checked_size


@GEOMETRIES.register("token_budget")
@dataclass(frozen=True)
class TokenBudgetGeometry(ImageGeometry):
    """Every image is scaled, up or down, to as many tokens as fit, with its aspect ratio; sides are rounded down.

    Args:
        patch_size, pool_size, class_token, split_token: as in every geometry.
        tokens: the budget, without class and split tokens (Gemma 4: 70, 140, 280, 560 or 1120).

    Raises:
        ConfigError: a size is no positive integer.
    """

    patch_size: int = 48
    pool_size: int = 1
    class_token: bool = False
    split_token: bool = False
    tokens: int = 280

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels, whole tokens."""
        width, height = checked_size(width, height)
        # In this order of operations, on which the last digit and so a rounding can depend.
        factor = math.sqrt(self.tokens * self.token_size**2 / (height * width))
        cols, rows = (math.floor(factor * side / self.token_size) for side in (width, height))
        if not rows:
            cols, rows = min(width // height, self.tokens), 1
        elif not cols:
            cols, rows = 1, min(height // width, self.tokens)
        return cols * self.token_size, rows * self.token_size
