"""Any causal language model of transformers as EVE's decoder: which families, their parts, and how packed rows reach them."""

from lit_eve.models.decoders.families import (
    check_decoder,
    embed_tokens,
    keeps_samples_apart,
    longest_sample,
    reads_longer_samples,
)
from lit_eve.models.decoders.head import FamilyHead
from lit_eve.models.decoders.side_by_side import SideBySide, packed_inputs, usual_attention
from lit_eve.models.decoders.structure import blocks_of, decoder_of

__all__ = [
    "FamilyHead",
    "SideBySide",
    "blocks_of",
    "check_decoder",
    "decoder_of",
    "embed_tokens",
    "keeps_samples_apart",
    "longest_sample",
    "packed_inputs",
    "reads_longer_samples",
    "usual_attention",
]
