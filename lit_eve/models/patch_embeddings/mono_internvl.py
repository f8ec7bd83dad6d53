"""Mono-InternVL's patch embedding (arXiv 2410.08202; upstream ``modeling_intern_patch.py`` and ``mlp1``).

Notation: P patches of p x p pixels, Q = P / pool^2 tokens, N tiles, E width of a patch, D width of the decoder.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens, PatchEmbedding
from lit_eve.models.patch_embeddings.places import places_of_patches, places_of_tokens
from lit_eve.models.patch_embeddings.position_grid import PositionGrid
from lit_eve.processing.geometries import ImageGeometry


@PATCH_EMBEDDINGS.register("mono_internvl")
class MonoInternVLPatchEmbedding(PatchEmbedding):
    """A convolution, a learned position for each patch of a tile, and an MLP over windows. The projector is ``identity``.

    Args:
        geometry: sizes of patches and pooling windows.
        hidden_size: D.
        patch_width: E.
        positions: patches along a side of the square that positions are learned for; those of other grids are interpolated.
    """

    def __init__(self, geometry: ImageGeometry, hidden_size: int, patch_width: int = 1024, positions: int = 32) -> None:
        super().__init__(geometry, hidden_size, patch_width=patch_width, positions=positions)
        self.pool_size = geometry.pool_size
        self.patch_projection = nn.Linear(geometry.patch_dim, patch_width)
        self.positions = PositionGrid(positions, patch_width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(self.window * patch_width),
            nn.Linear(self.window * patch_width, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        )

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int, grid_hw: Tensor) -> ImageTokens:
        """(P, 3 * p * p) patches, those of a window side by side -> tokens of all tiles; they share one class token."""
        places = places_of_patches(places_of_tokens(grid_hw, image_of_token), self.pool_size)  # (P, 2)
        sizes = (grid_hw * self.pool_size)[torch.repeat_interleave(image_of_token, self.window)]  # (P, 2)
        embedded = self.patch_projection(patches) + self.positions(places, sizes)  # (P, E)
        tokens = self.mlp(rearrange(embedded, "(q w) e -> q (w e)", w=self.window))  # (Q, D)
        return self.with_embeddings(tokens, num_images)
