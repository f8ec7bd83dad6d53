"""What a token may look at, and the kernels that compute it."""

from lit_eve.models.attention.kernels import PACKED, PACKED_SDPA, PACKED_VARLEN
from lit_eve.models.attention.packed import packed_attention, packed_rows
from lit_eve.models.attention.rows import PackedRows

__all__ = ["PACKED", "PACKED_SDPA", "PACKED_VARLEN", "PackedRows", "packed_attention", "packed_rows"]
