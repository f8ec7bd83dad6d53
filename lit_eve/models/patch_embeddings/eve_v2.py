"""EVE v2's patch embedding (arXiv 2502.06788, section 3; upstream EVEv2/eve/model/multimodal_encoder/vision_tokenizer.py).

Notation: P patches of p x p pixels, Q = P / pool^2 tokens, N images, E width between the convolutions, D width of the decoder.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens, PatchEmbedding
from lit_eve.processing.geometries import ImageGeometry


@PATCH_EMBEDDINGS.register("eve_v2")
class EveV2PatchEmbedding(PatchEmbedding):
    """Two convolutions with a GELU between them, straight to the decoder's width: the projector is ``identity``.

    Args:
        geometry: sizes of patches and pooling windows; the strides of the two convolutions.
        hidden_size: D.
        patch_width: E.
    """

    def __init__(self, geometry: ImageGeometry, hidden_size: int, patch_width: int = 1024) -> None:
        super().__init__(geometry, hidden_size, patch_width=patch_width)
        # Convolutions whose stride is their kernel, on patches that are cut and ordered already: matrix products.
        self.patch_projection = nn.Linear(geometry.patch_dim, patch_width)
        self.window_projection = nn.Linear(self.window * patch_width, hidden_size)

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int) -> ImageTokens:
        """(P, 3 * p * p) patches, those of a window side by side -> tokens of all images; they share one class token."""
        embedded = F.gelu(self.patch_projection(patches))  # (P, E)
        tokens = self.window_projection(rearrange(embedded, "(q w) e -> q (w e)", w=self.window))  # (Q, D)
        return self.with_embeddings(tokens, num_images)
