"""Patch embeddings: what stands in for a vision encoder. One file each."""

from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens, PatchEmbedding, check_image_tokens, takes_grid
from lit_eve.models.patch_embeddings.eve_v1 import EveV1PatchEmbedding
from lit_eve.models.patch_embeddings.eve_v2 import EveV2PatchEmbedding
from lit_eve.models.patch_embeddings.gemma4_unified import Gemma4UnifiedPatchEmbedding
from lit_eve.models.patch_embeddings.linear import LinearPatchEmbedding
from lit_eve.models.patch_embeddings.llm_tower import LlmTowerPatchEmbedding
from lit_eve.models.patch_embeddings.mono_internvl import MonoInternVLPatchEmbedding
from lit_eve.models.patch_embeddings.neo import NeoPatchEmbedding
from lit_eve.models.patch_embeddings.places import places_of_tokens
from lit_eve.models.patch_embeddings.tower import TowerPatchEmbedding, has_tower
from lit_eve.models.patch_embeddings.vision_tower import VisionTowerPatchEmbedding
from lit_eve.models.patch_embeddings.vora import VoraPatchEmbedding

__all__ = [
    "PATCH_EMBEDDINGS",
    "EveV1PatchEmbedding",
    "EveV2PatchEmbedding",
    "Gemma4UnifiedPatchEmbedding",
    "ImageTokens",
    "LinearPatchEmbedding",
    "LlmTowerPatchEmbedding",
    "MonoInternVLPatchEmbedding",
    "NeoPatchEmbedding",
    "PatchEmbedding",
    "TowerPatchEmbedding",
    "VisionTowerPatchEmbedding",
    "VoraPatchEmbedding",
    "check_image_tokens",
    "has_tower",
    "places_of_tokens",
    "takes_grid",
]
