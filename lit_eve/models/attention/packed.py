"""Attention over packed rows: each sample attends to itself only, and no work is done on the rest of the row.

Three names are registered with transformers. All are torch's SDPA, as ``sdpa`` is, until the model passes sample boundaries:

    packed          what is fastest here: flash-attn if it is installed, else torch's ``varlen_attn``, else SDPA (the default)
    packed_varlen   torch's ``varlen_attn``, or an error
    packed_sdpa     SDPA: sample by sample on the CPU (measured faster than a dense mask there), elsewhere under a block mask

The two kernels for rows of varying length run on NVIDIA GPUs from Ampere on, in float16 and bfloat16, with heads of at most 256
that are a multiple of 8; ``varlen_attn`` has no dropout. Where that does not fit, ``packed`` is SDPA. The meta device stands
for such a GPU. Neither path waits for the device.

Any other implementation of transformers can be chosen: ``flash_attention_2`` and its like get the boundaries from the model,
the others find them in ``position_ids``.

Notation: B rows, T tokens per row, S samples, h heads, d head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lit_eve.errors import LitEveError
from lit_eve.models.attention import kernels
from lit_eve.models.attention.kernels import KERNELS, PACKED, PACKED_VARLEN, sdpa_kernel
from lit_eve.models.attention.masks import ImageMask, check_takes_masks
from lit_eve.models.attention.rows import PackedRows, band


def packed_rows(
    implementation: str,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    rows: int,
    length: int,
    images: ImageMask | None = None,
) -> tuple[Tensor | None, dict[str, Any]]:
    """What the decoder needs to keep the samples of packed rows apart.

    Args:
        implementation: name of the decoder's attention.
        cu_seqlens: (S + 1,) int32, boundaries over the flattened B * T tokens; no sample crosses a row.
        max_seqlen: length of the longest sample, or more; default: T.
        rows: B.
        length: T.
        images: what tokens see, where images are not read like text.

    Returns:
        The attention mask to give to the decoder, and keyword arguments that it hands on to its attention.

    Raises:
        LitEveError: ``packed_varlen`` was asked for on a device without it, or where images are not read like text.
    """
    if images is not None:
        check_takes_masks(implementation, images.kind)
    max_seqlen = length if max_seqlen is None else min(int(max_seqlen), length)
    if implementation in KERNELS:
        device = cu_seqlens.device
        kernel = KERNELS[implementation](device)
        if images is not None:
            kernel = sdpa_kernel(device)
        packed = PackedRows(cu_seqlens, max_seqlen, rows, length, kernel, _autocast(device.type), images)
        if images is not None and kernel == "mask":
            packed.mask()  # made here: layers may be compiled
        # transformers takes a 4-dimensional mask as it is, and builds none of its own; this one is never read.
        return torch.empty(1, 1, 1, 1, dtype=torch.bool, device=device), {"packed": packed}
    if "flash" in implementation:  # flash_attention_2, kernels-community/flash-attn2: that is how transformers tells them
        # In position_ids it would look for them in every layer, wait for the device each time, and only if B is 1.
        lengths = {"max_length_q": max_seqlen, "max_length_k": max_seqlen}
        return None, {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, **lengths}
    return None, {}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: PackedRows | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention of (B, h, T, d) queries, keys and values (these may have fewer heads), within samples where ``packed``.

    Returns:
        (B, T, h, d) and no attention weights.

    Raises:
        LitEveError: this decoder's attention is of a kind that is not here, or ``packed_varlen`` cannot compute it.
    """
    name = type(module).__name__
    for argument, what in (("softcap", "caps its attention scores"), ("s_aux", "has attention sinks")):
        if kwargs.get(argument) is not None:
            raise LitEveError(f"{name} {what}: choose attn_implementation 'eager' or a flash attention that can do this")
    if packed is None:
        if attention_mask is not None and attention_mask.shape == (1, 1, 1, 1) and query.shape[2] > 1:
            raise LitEveError(f"{name} does not hand the samples' boundaries on: choose attn_implementation 'eager'")
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    if packed.autocast is not None:
        # SDPA casts by itself; the other kernels would meet rotated queries in float32 and values in half precision.
        query, key, value = (x.to(packed.autocast) for x in (query, key, value))
    kernel = packed.kernel
    if kernel in ("flash_attn", "varlen") and (obstacle := kernels.obstacle_of(kernel, query, dropout)):
        if module.config._attn_implementation == PACKED_VARLEN:
            raise LitEveError(f"attn_implementation {PACKED_VARLEN!r} {obstacle}; {PACKED!r} takes what fits")
        kernel = sdpa_kernel(query.device)
    window = sliding_window if sliding_window is not None and sliding_window < packed.max_seqlen else None
    if kernel == "mask":
        return sdpa_attention_forward(module, query, key, value, packed.mask(window), dropout=dropout, scaling=scaling)
    if packed.images is not None:
        return _segment_by_segment(packed, query, key, value, dropout, scaling, window), None
    if kernel == "samples":
        return _sample_by_sample(packed, query, key, value, dropout, scaling, window), None
    return _varlen(kernel, packed, query, key, value, dropout, scaling, window), None


def _varlen(
    kernel: str,
    packed: PackedRows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """All samples in one call of a kernel that knows their boundaries: (B, h, T, d) -> (B, T, h, d)."""
    width = value.shape[-1]
    if width < query.shape[-1]:  # these kernels know one width for all three
        value = F.pad(value, (0, query.shape[-1] - width))
    flat = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]  # (B * T, h, d) each, as projected: no copy
    cu, longest = packed.cu_seqlens, packed.max_seqlen
    out = kernels.varlen(kernel, *flat, cu, cu, longest, longest, dropout=dropout, scale=scaling, window=window)
    return out[..., :width].unflatten(0, (packed.rows, packed.length))


def _sample_by_sample(
    packed: PackedRows, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    """One causal SDPA per sample: (B, h, T, d) -> (B, T, h, d)."""

    def samples(x: Tensor) -> tuple[Tensor, ...]:
        flat = x.transpose(0, 1).flatten(1, 2)[None]  # (1, h, B * T, d)
        return flat.split(packed.sample_lengths, dim=2)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        mask = None if window is None or length <= window else band(length, window, q.device)
        options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": q.shape[1] != k.shape[1]}
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, **options)

    attended = [attend(*sample) for sample in zip(samples(query), samples(key), samples(value), strict=True)]
    out = torch.cat(attended, dim=2)[0]  # (h, B * T, d)
    return out.transpose(0, 1).unflatten(0, (packed.rows, packed.length)).contiguous()


def _segment_by_segment(
    packed: PackedRows, query: Tensor, key: Tensor, value: Tensor, dropout: float, scaling: float | None, window: int | None
) -> Tensor:
    """One SDPA per text and per image of each sample: (B, h, T, d) -> (B, T, h, d).

    The queries of an image see all from the beginning of their sample to the end of the image; those of a text see that up to
    themselves. Where this is not so (windows, kinds that hide more), it is one SDPA per sample under a mask.
    """
    flat = [x.transpose(0, 1).flatten(1, 2)[None] for x in (query, key, value)]  # (1, h, B * T, d) each
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": query.shape[1] != key.shape[1]}

    def attend(sample: int, start: int, stop: int, mask: Tensor | None, is_causal: bool = False) -> Tensor:
        q, k, v = flat[0][:, :, start:stop], *(x[:, :, sample:stop] for x in flat[1:])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal, **options)

    attended = []
    if window is None and not packed.images.kind.hides and packed.segments is not None:
        for sample, start, stop, is_image in packed.segments:
            if is_image or stop - start == 1:
                attended.append(attend(sample, start, stop, None))
            elif sample == start:
                attended.append(attend(sample, start, stop, None, is_causal=True))
            else:
                attended.append(attend(sample, start, stop, packed.mask_of_text(stop - start, stop - sample)))
    else:
        start = 0
        for length in packed.sample_lengths:
            attended.append(attend(start, start, start + length, packed.mask_of(start, start + length, window)))
            start += length
    out = torch.cat(attended, dim=2)[0]  # (h, B * T, d)
    return out.transpose(0, 1).unflatten(0, (packed.rows, packed.length)).contiguous()


def _autocast(device: str) -> torch.dtype | None:
    # Asked here, once per forward pass: some versions of torch.compile cannot trace the question.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _mask_by_broadcasting(*args: Any, use_vmap: bool = False, **kwargs: Any) -> Tensor | None:
    """transformers' mask. What :class:`ImageMask` adds is elementwise and needs no vmap, which takes fifty times as long."""
    return sdpa_mask(*args, **kwargs)


for _name in KERNELS:
    AttentionInterface.register(_name, packed_attention)
    AttentionMaskInterface.register(_name, _mask_by_broadcasting)
