"""EVE v2's geometry: an image keeps its own size up to a bounded area (upstream EVEv2/eve/mm_utils.py)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lit_eve.errors import ConfigError
from lit_eve.processing.geometries.base import GEOMETRIES, ImageGeometry, checked_size


@GEOMETRIES.register("eve_v2")
@dataclass(frozen=True)
class EveV2Geometry(ImageGeometry):
    """Both sides shrink by one factor until the area is at most ``max_size`` squared, and are rounded to whole tokens.

    Args:
        patch_size: stride of the first convolution.
        pool_size: stride of the second.
        max_size: root of the largest area, in pixels (EVE v2: 800, then 1600). Rounding may pass it by half a token a side.
        rule: ``train`` leaves smaller images as they are, and rounds to the nearest. ``inference`` is what the official code
            does when it answers: it enlarges small images as well, and rounds up, so that a model meets sizes then that it was
            not trained on.
        class_token, split_token: as in every geometry.

    Raises:
        ConfigError: a size is no positive integer, or there is no such rule.
    """

    RULES: ClassVar[tuple[str, ...]] = ("train", "inference")

    patch_size: int = 16
    max_size: int = 800
    rule: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in self.RULES:
            raise ConfigError(f"geometry.rule must be one of {', '.join(self.RULES)}, got {self.rule!r}")
        if self.max_size < self.token_size:
            raise ConfigError(
                f"geometry.max_size = {self.max_size} is less than the patch_size * pool_size = {self.token_size} of a token"
            )

    def resized(self, width: int, height: int, images: int = 1) -> tuple[int, int]:
        """(width, height) in pixels, whole tokens."""
        width, height = checked_size(width, height)
        factor = math.sqrt(width * height) / self.max_size
        if self.rule == "train" and factor <= 1:
            factor = 1.0
        whole = round if self.rule == "train" else math.ceil
        sides = (max(whole(side / factor / self.token_size), 1) * self.token_size for side in (width, height))
        return tuple(sides)  # type: ignore[return-value]
