"""Samples of packed rows laid side by side, for decoders that would mix them in a row.

Recurrent layers, convolutions and attention masks of a family's own know no boundaries inside a row. Each sample gets a row to
itself, begins at its left end, and has nothing but padding behind it, which no causal decoder looks at. The price is that
padding: a row costs as much as all its samples at the length of the longest.

Notation: B rows, T tokens per row, S samples, K tokens of the longest sample, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lit_eve.models.attention import PACKED, ImageMask, packed_rows
from lit_eve.models.decoders.families import keeps_samples_apart
from lit_eve.models.splice import starts_of_samples


def packed_inputs(
    decoder: PreTrainedModel,
    inputs_embeds: Tensor,
    position_ids: Tensor | None,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    images: ImageMask | None = None,
) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
    """What a decoder is given so that the samples of packed rows do not see each other.

    Args:
        decoder: of any family.
        inputs_embeds: (B, T, D).
        position_ids: (B, T), restarting at every sample; counted where they are missing.
        cu_seqlens: (S + 1,) int32, boundaries over the flattened B * T tokens; no sample crosses a row.
        max_seqlen: K or more; default: T.
        images: what tokens see, where images are not read like text; for families that read packed rows as they are.

    Returns:
        Its arguments, and what makes rows (B, T, ...) of its hidden states.
    """
    rows, length = inputs_embeds.shape[:2]
    if keeps_samples_apart(decoder.config):
        mask, boundaries = packed_rows(decoder.config._attn_implementation, cu_seqlens, max_seqlen, rows, length, images)
        if images is not None and not boundaries:
            mask = images.for_decoder(decoder.config, inputs_embeds)
        if position_ids is None:
            starts = starts_of_samples(inputs_embeds[..., 0], cu_seqlens)
            position_ids = (torch.arange(len(starts), device=starts.device) - starts).view(rows, length)
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": mask, "position_ids": position_ids}
        return inputs | boundaries, lambda hidden: hidden
    apart = SideBySide.of(cu_seqlens, max_seqlen, rows, length)
    return {"inputs_embeds": apart.lay_out(inputs_embeds)}, apart.pack  # positions count from 0 by themselves


def usual_attention(config: PreTrainedConfig) -> str | None:
    """The attention implementation of a decoder for which none was chosen; None leaves it to transformers."""
    if keeps_samples_apart(config):
        return PACKED
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None  # some versions' sdpa passes over the cap


@dataclass(frozen=True)
class SideBySide:
    """Packed rows (B, T, ...) to one sample per row (S, K, ...), and back; nothing waits for the device."""

    places: Tensor  # (S, K) int64, where each token stands in the flattened B * T; the last token's place behind a sample's end
    origin: Tensor  # (B, T) int64, where each token stands in the flattened S * K

    @classmethod
    def of(cls, cu_seqlens: Tensor, max_seqlen: int | None, rows: int, length: int) -> SideBySide:
        """Args: (S + 1,) boundaries over the flattened B * T tokens, K or more (default: T), B, T."""
        longest = length if max_seqlen is None else min(int(max_seqlen), length)
        tokens = torch.arange(rows * length, device=cu_seqlens.device)
        bounds = cu_seqlens.long()
        within = torch.arange(longest, device=bounds.device)
        places = torch.minimum(bounds[:-1, None] + within, bounds[1:, None] - 1)  # (S, K)
        sample = torch.searchsorted(bounds, tokens, right=True) - 1  # (B * T,)
        origin = sample * longest + tokens - bounds[sample]
        return cls(places, origin.view(rows, length))

    def lay_out(self, packed: Tensor) -> Tensor:
        """(B, T, D) -> (S, K, D)."""
        return packed.flatten(0, 1)[self.places]

    def pack(self, laid_out: Tensor) -> Tensor:
        """(S, K, D) -> (B, T, D)."""
        return laid_out.flatten(0, 1)[self.origin]
