"""What a token may look at, and the kernels that compute it."""

from lit_eve.models.attention.images import (
    IMAGE_ATTENTIONS,
    ImageAttention,
    Tokens,
    number_images,
)
from lit_eve.models.attention.kernels import PACKED, PACKED_SDPA, PACKED_VARLEN
from lit_eve.models.attention.masks import ImageMask, check_takes_masks, mask_of_batch
from lit_eve.models.attention.packed import packed_attention, packed_rows
from lit_eve.models.attention.rows import PackedRows

__all__ = [
    "IMAGE_ATTENTIONS",
    "PACKED",
    "PACKED_SDPA",
    "PACKED_VARLEN",
    "ImageAttention",
    "ImageMask",
    "PackedRows",
    "Tokens",
    "check_takes_masks",
    "mask_of_batch",
    "number_images",
    "packed_attention",
    "packed_rows",
]
