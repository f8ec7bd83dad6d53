"""The encoder-free decoder: config, patch embeddings, splice, masks, the model, and weights of other layouts.

Importing this package registers EVE with transformers' Auto classes, so that ``from_pretrained`` and ``pipeline`` find it.
"""

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from lit_eve.models.attention import IMAGE_ATTENTIONS, PACKED, PACKED_SDPA, PACKED_VARLEN, ImageAttention, Tokens
from lit_eve.models.checkpoints.loading import load
from lit_eve.models.config import EveConfig
from lit_eve.models.decoders import DECODER_KINDS, DecoderKind, blocks_of
from lit_eve.models.eve import EveForConditionalGeneration, EveOutput
from lit_eve.models.patch_embeddings import (
    PATCH_EMBEDDINGS,
    EveV1PatchEmbedding,
    ImageTokens,
    LinearPatchEmbedding,
    PatchEmbedding,
    places_of_tokens,
)
from lit_eve.models.positions import POSITIONS, Positions, TimeHeightWidth
from lit_eve.models.projector import PROJECTORS
from lit_eve.models.supervision import SUPERVISIONS, ImageBatch, Supervision
from lit_eve.processing import EveProcessor

AutoConfig.register(EveConfig.model_type, EveConfig)
AutoModelForImageTextToText.register(EveConfig, EveForConditionalGeneration)
AutoProcessor.register(EveConfig, EveProcessor)

__all__ = [
    "DECODER_KINDS",
    "IMAGE_ATTENTIONS",
    "PACKED",
    "PACKED_SDPA",
    "PACKED_VARLEN",
    "PATCH_EMBEDDINGS",
    "POSITIONS",
    "PROJECTORS",
    "SUPERVISIONS",
    "DecoderKind",
    "EveConfig",
    "EveForConditionalGeneration",
    "EveOutput",
    "EveV1PatchEmbedding",
    "ImageAttention",
    "ImageBatch",
    "ImageTokens",
    "LinearPatchEmbedding",
    "PatchEmbedding",
    "Positions",
    "Supervision",
    "TimeHeightWidth",
    "Tokens",
    "blocks_of",
    "load",
    "places_of_tokens",
]
