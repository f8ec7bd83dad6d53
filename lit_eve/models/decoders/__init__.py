"""Any causal language model of transformers as EVE's decoder: which families, their parts, how packed rows reach them, and
what is built into them (kinds, by name)."""

from lit_eve.models.decoders.experts import Experts
from lit_eve.models.decoders.families import (
    check_decoder,
    check_image_attention,
    embed_tokens,
    keeps_samples_apart,
    longest_sample,
    reads_longer_samples,
)
from lit_eve.models.decoders.head import FamilyHead
from lit_eve.models.decoders.image_adapter import ImageAdapter
from lit_eve.models.decoders.kinds import DECODER_KINDS, DecoderKind, Dense, Merge
from lit_eve.models.decoders.lora import add_lora
from lit_eve.models.decoders.pre_buffer import PreBuffer
from lit_eve.models.decoders.routing import ImageSlots, modules_by_tokens
from lit_eve.models.decoders.side_by_side import SideBySide, packed_inputs, usual_attention
from lit_eve.models.decoders.structure import blocks_of, decoder_of, final_norm_of

__all__ = [
    "DECODER_KINDS",
    "DecoderKind",
    "Dense",
    "Experts",
    "FamilyHead",
    "ImageAdapter",
    "ImageSlots",
    "PreBuffer",
    "Merge",
    "SideBySide",
    "add_lora",
    "blocks_of",
    "check_decoder",
    "check_image_attention",
    "decoder_of",
    "embed_tokens",
    "final_norm_of",
    "keeps_samples_apart",
    "longest_sample",
    "modules_by_tokens",
    "packed_inputs",
    "reads_longer_samples",
    "usual_attention",
]
