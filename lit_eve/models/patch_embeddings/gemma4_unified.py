"""The patch embedding of Gemma 4 unified (transformers' ``Gemma4UnifiedVisionEmbedder``).

Notation: Q tokens (P = Q where a token is one patch), N images, E width inside, D width of the decoder.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_eve.errors import ConfigError, check_sizes
from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, PatchEmbedding
from lit_eve.models.patch_embeddings.places import check_places
from lit_eve.processing.geometries import ImageGeometry


@PATCH_EMBEDDINGS.register("gemma4_unified")
class Gemma4UnifiedPatchEmbedding(PatchEmbedding):
    """Normalised pixels, one matrix, and a learned vector for each row and each column; the projector is ``identity``.

    Pixels come in 0..1 (``image_mean`` 0, ``image_std`` 1).

    Args:
        geometry: sizes of patches and pooling windows; Gemma's tokens have 48 x 48 pixels.
        hidden_size: D.
        width: E; null: D, as in Gemma 4.
        positions: rows and columns that the tables know.

    Raises:
        ConfigError: all images have more along a side.
    """

    def __init__(self, geometry: ImageGeometry, hidden_size: int, width: int | None = None, positions: int = 1120) -> None:
        inner = hidden_size if width is None else width
        super().__init__(geometry, hidden_size, positions=positions)
        check_sizes("patch_embedding", width=inner)
        if geometry.longest_side is not None and geometry.longest_side > positions:
            raise ConfigError(
                f"patch_embedding.positions = {positions}, but images have {geometry.longest_side} tokens along a side"
            )
        self.pixel_norm = nn.LayerNorm(geometry.window_dim)
        self.patch_projection = nn.Linear(geometry.window_dim, inner)
        self.patch_norm = nn.LayerNorm(inner)
        self.places = PlaceTables(positions, inner)
        self.place_norm = nn.LayerNorm(inner)
        self.output_projection = nn.Linear(inner, hidden_size, bias=False)

    def embed(self, windows: Tensor, places: Tensor) -> Tensor:
        """(Q, pool * pool * 3 * p * p) pixels at (Q, 2) places -> (Q, D)."""
        embedded = self.patch_norm(self.patch_projection(self.pixel_norm(windows)))  # (Q, E)
        embedded = self.place_norm(embedded + self.places(places))
        return self.output_projection(F.rms_norm(embedded, embedded.shape[-1:], eps=1e-6))


class PlaceTables(nn.Module):
    """A learned vector for each row and one for each column; a place has the sum of its two."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.empty(positions, width))
        self.columns = nn.Parameter(torch.empty(positions, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zeros, as upstream."""
        nn.init.zeros_(self.rows)
        nn.init.zeros_(self.columns)

    def forward(self, places: Tensor) -> Tensor:
        """(Q, 2) rows and columns -> (Q, E)."""
        check_places(places, len(self.rows))
        return self.rows[places[:, 0]] + self.columns[places[:, 1]]
