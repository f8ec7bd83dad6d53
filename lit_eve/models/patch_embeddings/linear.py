"""Linear patches: every pooling window becomes a token by one matrix product, as in Fuyu (adept.ai/blog/fuyu-8b) and SOLO."""

from __future__ import annotations

from torch import Tensor, nn

from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, PatchEmbedding
from lit_eve.processing.geometries import ImageGeometry


@PATCH_EMBEDDINGS.register("linear")
class LinearPatchEmbedding(PatchEmbedding):
    """No attention: a token knows its own window only, and all images share one class token.

    Args:
        geometry: sizes of patches and pooling windows.
        width: E; null: that of the decoder, for the projector ``identity``.
        bias: whether there is one (SOLO has none).
        hidden_size: width of the decoder.
    """

    def __init__(
        self, geometry: ImageGeometry, width: int | None = 1024, bias: bool = True, hidden_size: int | None = None
    ) -> None:
        super().__init__(geometry, width or hidden_size)
        self.projection = nn.Linear(geometry.window_dim, self.width, bias=bias)

    def embed(self, windows: Tensor, places: Tensor) -> Tensor:
        """(Q, pool * pool * 3 * p * p) pixels -> (Q, E)."""
        return self.projection(windows)
