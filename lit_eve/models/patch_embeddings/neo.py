"""NEO's patch embedding (arXiv 2510.14979; upstream VLMTrainKit, ``NEOVisionEmbeddings``).

Notation: P patches of p x p pixels, Q = P / pool^2 tokens, N images, E width of a patch, D width of the decoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lit_eve.errors import ConfigError
from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens, PatchEmbedding
from lit_eve.models.patch_embeddings.places import places_of_patches, places_of_tokens
from lit_eve.processing.geometries import ImageGeometry


@PATCH_EMBEDDINGS.register("neo")
class NeoPatchEmbedding(PatchEmbedding):
    """Two convolutions; between them, what each patch is turned by its row and its column. The projector is ``identity``.

    Args:
        geometry: sizes of patches and pooling windows; the strides of the two convolutions.
        hidden_size: D.
        patch_width: E.
        theta: base of the rotary frequencies.

    Raises:
        ConfigError: the width is no multiple of 4.
    """

    def __init__(self, geometry: ImageGeometry, hidden_size: int, patch_width: int = 1024, theta: float = 10_000.0) -> None:
        super().__init__(geometry, hidden_size, patch_width=patch_width)
        if patch_width % 4:
            raise ConfigError(
                f"patch_embedding: patch_width {patch_width} must be a multiple of 4, for pairs in two directions"
            )
        self.pool_size, self.theta = geometry.pool_size, theta
        self.patch_projection = nn.Linear(geometry.patch_dim, patch_width)
        self.window_projection = nn.Linear(self.window * patch_width, hidden_size)

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int, grid_hw: Tensor) -> ImageTokens:
        """(P, 3 * p * p) patches, those of a window side by side -> tokens of all images; they share one class token."""
        embedded = F.gelu(self.patch_projection(patches))  # (P, E)
        places = places_of_patches(places_of_tokens(grid_hw, image_of_token), self.pool_size)  # (P, 2)
        by_column, by_row = embedded.chunk(2, 1)  # (P, E / 2) each
        turned = torch.cat([rotate(by_column, places[:, 1], self.theta), rotate(by_row, places[:, 0], self.theta)], 1)
        tokens = self.window_projection(rearrange(turned, "(q w) e -> q (w e)", w=self.window))  # (Q, D)
        return self.with_embeddings(tokens, num_images)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Turn neighbouring channels (2i, 2i + 1) by ``position * theta ** (-2i / width)``: (P, width) -> (P, width)."""
    width = x.shape[1]
    frequencies = theta ** (-torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angles = positions[:, None] * frequencies  # (P, width / 2)
    first, second = x.float().unflatten(1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(1).to(x.dtype)
