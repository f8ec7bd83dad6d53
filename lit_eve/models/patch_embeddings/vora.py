"""VoRA's patch embedding (arXiv 2503.20680; upstream ``vision_embedding.py``): what it copies from AIMv2.

Notation: P patches of p x p pixels, Q = P / pool^2 tokens, N images, E width of a patch, D width of the decoder.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens, PatchEmbedding
from lit_eve.models.patch_embeddings.places import places_of_tokens
from lit_eve.models.patch_embeddings.position_grid import PositionGrid
from lit_eve.processing.geometries import ImageGeometry


@PATCH_EMBEDDINGS.register("vora")
class VoraPatchEmbedding(PatchEmbedding):
    """A convolution, RMSNorm, a learned position for each patch, and one matrix. The projector is ``identity``.

    Upstream takes the first positions of the table for images that are smaller than it, whatever their shape; here they are
    interpolated as those of larger ones are.

    Args:
        geometry: sizes of patches and pooling windows.
        hidden_size: D.
        patch_width: E.
        positions: tokens along a side of the square that positions are learned for.
        eps: of the RMSNorm; upstream has the language model's.
    """

    def __init__(
        self, geometry: ImageGeometry, hidden_size: int, patch_width: int = 1536, positions: int = 32, eps: float = 1e-6
    ) -> None:
        super().__init__(geometry, hidden_size, patch_width=patch_width, positions=positions)
        self.patch_projection = nn.Linear(geometry.window_dim, patch_width)
        self.norm = nn.RMSNorm(patch_width, eps=eps)
        self.positions = ZeroPositionGrid(positions, patch_width)
        self.output_projection = nn.Linear(patch_width, hidden_size, bias=False)

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int, grid_hw: Tensor) -> ImageTokens:
        """(P, 3 * p * p) patches, those of a window side by side -> tokens of all images; they share one class token."""
        windows = rearrange(patches, "(q w) d -> q (w d)", w=self.window)
        places = places_of_tokens(grid_hw, image_of_token)  # (Q, 2)
        embedded = self.norm(self.patch_projection(windows)) + self.positions(places, grid_hw[image_of_token])  # (Q, E)
        return self.with_embeddings(self.output_projection(embedded), num_images)


class ZeroPositionGrid(PositionGrid):
    """Begins at zero, as upstream."""

    def reset_parameters(self) -> None:
        """Zeros."""
        nn.init.zeros_(self.table)
