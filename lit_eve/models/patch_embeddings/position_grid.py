"""Learned positions on a square grid, stretched to the grid of each image: bilinear, no loop over images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PositionGrid(nn.Module):
    """A vector for each cell of a square; an image of another grid reads between the cells.

    The four nearest cells are weighted as in ``torch.nn.functional.interpolate`` (bilinear, ``align_corners=False``), for any
    aspect ratio. At its own size, a cell is exactly itself.

    Args:
        side: cells along a side.
        width: E.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.empty(side, side, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal, of deviation 0.02."""
        nn.init.normal_(self.table, std=0.02)

    def forward(self, places: Tensor, sizes: Tensor) -> Tensor:
        """Positions of patches.

        Args:
            places: (P, 2) int64, row and column of each patch in its image.
            sizes: (P, 2) int64, rows and columns of that image.

        Returns:
            (P, E).
        """
        at = ((places + 0.5) * self.side / sizes - 0.5).clamp(0, self.side - 1)  # (P, 2), in cells of the table
        low = at.floor().long()
        high = (low + 1).clamp(max=self.side - 1)
        part = (at - low).to(self.table.dtype)[..., None]  # (P, 2, 1)
        (top, left), (bottom, right) = low.unbind(1), high.unbind(1)
        upper = torch.lerp(self.table[top, left], self.table[top, right], part[:, 1])
        lower = torch.lerp(self.table[bottom, left], self.table[bottom, right], part[:, 1])
        return torch.lerp(upper, lower, part[:, 0])
