"""Patch embeddings: what stands in for a vision encoder. One file each."""

from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens, PatchEmbedding, check_image_tokens, takes_grid
from lit_eve.models.patch_embeddings.eve_v1 import EveV1PatchEmbedding
from lit_eve.models.patch_embeddings.linear import LinearPatchEmbedding

__all__ = [
    "PATCH_EMBEDDINGS",
    "EveV1PatchEmbedding",
    "ImageTokens",
    "LinearPatchEmbedding",
    "PatchEmbedding",
    "check_image_tokens",
    "takes_grid",
]
