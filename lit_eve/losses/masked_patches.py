"""Masked patches: which tokens of an image are masked, and what is trained for it.

Notation: N images, Q image tokens, K tokens that may be masked, D decoder width, W numbers of a token's window of pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_BITS = 20  # shares are counted in 2**-20: whole numbers are the same on the host and on every device


class MaskedPatchHead(nn.Module):
    """What stands in the place of masked tokens, and what predicts their pixels.

    Args:
        hidden_size: D.
        window: W; None: nothing is predicted.
    """

    def __init__(self, hidden_size: int, window: int | None) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(hidden_size**-0.5 * torch.randn(hidden_size))
        self.pixels = None if window is None else nn.Linear(hidden_size, window)


@dataclass(frozen=True)
class MaskRatio:
    """The share of an image's tokens that is masked: drawn for each image between ``low`` and ``high``, nothing below 0."""

    low: float
    high: float

    def at_most(self, tokens: int) -> int:
        """How many of so many tokens are masked at most."""
        return tokens * self._units[1] >> _BITS

    def numbers(self, tokens: Tensor, random: Tensor) -> Tensor:
        """How many tokens of each image are masked, rounded down: (N,) int64.

        Args:
            tokens: (N,) int64, of each image.
            random: (N,) in [0, 1), with at most 24 bits behind the point.
        """
        low, high = self._units
        share = low + ((high - low) * (random * 2**24).long() >> 24)  # (N,)
        return tokens * share.clamp(min=0) >> _BITS

    @property
    def _units(self) -> tuple[int, int]:
        return math.ceil(self.low * 2**_BITS), math.ceil(self.high * 2**_BITS)


def choose_tokens(random: Tensor, image_of_token: Tensor, offset: Tensor, numbers: Tensor) -> Tensor:
    """Which tokens are masked: of each image so many, those with the smallest random numbers.

    Args:
        random: (Q,) in [0, 1), with at most 24 bits behind the point.
        image_of_token: (Q,) int64, ascending.
        offset: (Q,) int64, the place of each token in its image.
        numbers: (N,) int64.

    Returns:
        (Q,) bool
    """
    by_image = (image_of_token << 24) + (random * 2**24).long()
    order = by_image.argsort(stable=True)  # (Q,) image after image, as they stand
    is_masked = torch.zeros_like(image_of_token, dtype=torch.bool)
    return is_masked.scatter(0, order, offset < numbers[image_of_token])
