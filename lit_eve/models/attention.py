"""Attention over packed rows: each sample attends to itself only, and no work is done on the rest of the row.

One name, ``packed_sdpa``, is registered with transformers. It is torch's SDPA, as ``sdpa`` is, until the model passes sample
boundaries; then it runs causal attention sample by sample (CPU; measured faster than a dense mask there) or under a block
mask (elsewhere). Any other implementation of transformers can be chosen: it finds the boundaries in ``position_ids``.

Notation: B rows, T tokens per row, S samples, h heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED_SDPA = "packed_sdpa"


def packed_rows(cu_seqlens: Tensor, rows: int, length: int) -> tuple[Tensor, dict[str, Any]]:
    """What the decoder needs to keep the samples of packed rows apart.

    Args:
        cu_seqlens: (S + 1,) int32, boundaries over the flattened B * T tokens; no sample crosses a row.
        rows: B.
        length: T.

    Returns:
        The attention mask to give to the decoder, and keyword arguments that reach :func:`packed_sdpa_attention`.
    """
    if cu_seqlens.device.type == "cpu":
        # transformers takes a 4-dimensional mask as it is, and builds none of its own; this one is never read.
        unread = torch.empty(1, 1, 1, 1, dtype=torch.bool)
        return unread, {"sample_lengths": cu_seqlens.diff().tolist()}
    return block_causal_mask(cu_seqlens, rows, length), {}


def block_causal_mask(cu_seqlens: Tensor, rows: int, length: int) -> Tensor:
    """True where a query may look: back, and within its own sample.

    With samples of 2 and 3 tokens in a row of 5::

        1 . . . .
        1 1 . . .
        . . 1 . .
        . . 1 1 .
        . . 1 1 1

    Args:
        cu_seqlens: (S + 1,) boundaries over the flattened B * T tokens.

    Returns:
        (B, 1, T, T) bool.
    """
    places = torch.arange(rows * length, device=cu_seqlens.device)
    sample = torch.searchsorted(cu_seqlens, places, right=True).view(rows, length)  # (B, T)
    causal = torch.ones(length, length, dtype=torch.bool, device=cu_seqlens.device).tril()
    return ((sample[:, :, None] == sample[:, None, :]) & causal)[:, None]


def packed_sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sample_lengths: list[int] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of (B, h, T, d) queries, keys and values, within samples where their lengths are given.

    Returns:
        (B, T, h, d) and no attention weights.
    """
    if sample_lengths is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if kwargs.get("sliding_window") is not None and max(sample_lengths) > kwargs["sliding_window"]:
        raise NotImplementedError(f"{PACKED_SDPA} has no sliding window; choose another attention implementation")
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    rows, _, length, _ = query.shape

    def samples(x: Tensor) -> tuple[Tensor, ...]:
        flat = x.transpose(0, 1).flatten(1, 2) if rows > 1 else x.squeeze(0)  # (h, B * T, d)
        return flat.split(sample_lengths, dim=1)

    attended = [
        F.scaled_dot_product_attention(q[None], k[None], v[None], dropout_p=dropout, scale=scaling, is_causal=True)[0]
        for q, k, v in zip(samples(query), samples(key), samples(value), strict=True)
    ]
    out = torch.cat(attended, dim=1)  # (h, B * T, d)
    return out.transpose(0, 1).reshape(rows, length, *out.shape[::2]).contiguous(), None


AttentionInterface.register(PACKED_SDPA, packed_sdpa_attention)
AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
