"""EVE v1's patch embedding.

Source: arXiv 2406.11832, section 3.1 (patch embedding layer); upstream EVEv1/eve/model/multimodal_encoder/vision_tokenizer.py.
Notation: P patches of p x p pixels, Q = P / pool^2 tokens, N images, E width of the patch embedding, h heads.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from lit_eve.errors import ConfigError
from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens, PatchEmbedding
from lit_eve.processing.geometries import ImageGeometry


@PATCH_EMBEDDINGS.register("eve_v1")
class EveV1PatchEmbedding(PatchEmbedding):
    """EVE v1: convolution, attention inside each pooling window, a class token that attends to the whole image.

    Args:
        geometry: sizes of patches and pooling windows.
        width: E.
        num_heads: heads of both attentions. Their scale is E ** -0.5, the full width, as upstream.
        attend_windows: the paper's CA1: a token asks the patches of its window; without it, it is their mean.
        attend_images: its CA2: the class token asks all tokens of the image; without it, it is the same for all images.
    """

    def __init__(
        self,
        geometry: ImageGeometry,
        width: int = 1024,
        num_heads: int = 8,
        attend_windows: bool = True,
        attend_images: bool = True,
    ) -> None:
        super().__init__(geometry, width, num_heads=num_heads)
        if width % num_heads:
            raise ConfigError(f"patch_embedding: num_heads {num_heads} does not divide the width {width}")
        # A convolution whose stride is its kernel, on patches that are cut already: a matrix product.
        self.patch_projection = nn.Linear(geometry.patch_dim, width, bias=False)
        self.local_attention = QueryKeyValue(width, num_heads) if attend_windows else None
        self.global_attention = QueryKeyValue(width, num_heads) if attend_images and geometry.class_token else None

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int) -> ImageTokens:
        """(P, 3 * p * p) patches, the pool x pool patches of a window side by side -> tokens of all images."""
        windows = rearrange(self.patch_projection(patches), "(q w) e -> q w e", w=self.window)
        tokens = self._attend_window(windows)  # (Q, E)
        embedded = self.with_embeddings(tokens, num_images)
        if self.global_attention is None:
            return embedded
        return embedded._replace(classes=self._attend_image(tokens, image_of_token, num_images))  # (N, E)

    def _attend_window(self, windows: Tensor) -> Tensor:
        """The mean of each window asks its patches: (Q, window, E) -> (Q, E)."""
        mean, attention = windows.mean(1), self.local_attention  # (Q, E)
        if attention is None:
            return mean
        query = attention.query(mean)  # (Q, h, e)
        key, value = attention.key_value(windows)  # (Q, window, h, e)
        weights = (query[:, None] * key).sum(-1).softmax(1)  # (Q, window, h)
        attended = (weights.unsqueeze(-1) * value).sum(1)  # (Q, h, e)
        return mean + attention.out_projection(attended.flatten(1))

    def _attend_image(self, tokens: Tensor, image_of_token: Tensor, num_images: int) -> Tensor:
        """The class embedding asks all tokens of an image: softmax over segments of different lengths -> (N, E)."""
        attention = self.global_attention
        query = attention.query(self.class_embedding)  # (h, e)
        key, value = attention.key_value(tokens)  # (Q, h, e)
        scores = (query * key).sum(-1).float()  # (Q, h)
        index = image_of_token[:, None].expand_as(scores)
        peak = scores.new_full((num_images, scores.shape[1]), -torch.inf)
        peak = peak.scatter_reduce(0, index, scores.detach(), "amax")  # (N, h)
        weights = (scores - peak[image_of_token]).exp()  # (Q, h)
        total = scores.new_zeros(num_images, scores.shape[1]).index_add(0, image_of_token, weights)  # (N, h)
        weights = (weights / total[image_of_token]).to(value.dtype)
        attended = value.new_zeros(num_images, *value.shape[1:])
        attended = attended.index_add(0, image_of_token, weights.unsqueeze(-1) * value)  # (N, h, e)
        return self.class_embedding + attention.out_projection(attended.flatten(1))


class QueryKeyValue(nn.Module):
    """The projections of EVE's small attentions: LayerNorm and bias-free linear for q and for kv, linear with bias out."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = width**-0.5
        self.q_norm = nn.LayerNorm(width)
        self.q_projection = nn.Linear(width, width, bias=False)
        self.kv_norm = nn.LayerNorm(width)
        self.kv_projection = nn.Linear(width, 2 * width, bias=False)
        self.out_projection = nn.Linear(width, width)

    def query(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., h, e), scaled."""
        return rearrange(self.q_projection(self.q_norm(x)) * self.scale, "... (h e) -> ... h e", h=self.num_heads)

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., E) -> keys and values, (..., h, e) each."""
        kv = self.kv_projection(self.kv_norm(x))
        key, value = rearrange(kv, "... (two h e) -> two ... h e", two=2, h=self.num_heads)
        return key, value
