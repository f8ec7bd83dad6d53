"""Where each token of a batch of images stands in its image: index arithmetic on the device, without a loop.

Notation: Q tokens of all images, N images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eve.models.splice import check


def places_of_tokens(grid_hw: Tensor, image_of_token: Tensor) -> Tensor:
    """Row and column of each token.

    Args:
        grid_hw: (N, 2) int64, rows and columns of each image's tokens.
        image_of_token: (Q,) int64.

    Returns:
        (Q, 2) int64.
    """
    counts = grid_hw.prod(1)  # (N,)
    offset = torch.arange(len(image_of_token), device=grid_hw.device) - (counts.cumsum(0) - counts)[image_of_token]
    columns = grid_hw[image_of_token, 1]
    return torch.stack([offset // columns, offset % columns], 1)


def places_of_patches(places: Tensor, pool_size: int) -> Tensor:
    """Row and column of each patch, in the order of ``pixel_values``: (Q, 2) of tokens -> (Q * pool^2, 2)."""
    inner = torch.arange(pool_size, device=places.device)
    within = torch.cartesian_prod(inner, inner).view(-1, 2)  # (pool^2, 2)
    return (places[:, None] * pool_size + within).flatten(0, 1)


def check_places(places: Tensor, size: int) -> None:
    """Raise LitEveError if an image has more than ``size`` rows or columns; off the CPU, without waiting for the device."""
    check((places < size).all(), f"an image has more rows or columns than the {size} that the patch embedding knows")
