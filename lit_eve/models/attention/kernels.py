"""Which kernel computes attention over packed rows, by the name that was chosen and the device."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from lit_eve.errors import LitEveError

PACKED = "packed"
PACKED_VARLEN = "packed_varlen"
PACKED_SDPA = "packed_sdpa"

_VARLEN_KNOWS_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters
"""Whether torch's ``varlen_attn`` takes fewer keys than queries, as from 2.12 on; for an older one they are repeated."""


def _best_kernel(device: torch.device) -> str:
    if not _has_varlen(device):
        return sdpa_kernel(device)
    return "varlen" if device.type == "meta" or _flash_attn() is None else "flash_attn"


def sdpa_kernel(device: torch.device) -> str:
    return "samples" if device.type == "cpu" else "mask"


def _varlen_kernel(device: torch.device) -> str:
    if not _has_varlen(device):
        raise LitEveError(
            f"attn_implementation {PACKED_VARLEN!r} needs an NVIDIA GPU of compute capability 8.0 (Ampere) or newer, "
            f"but the model is on {device}; {PACKED!r} takes what there is"
        )
    return "varlen"


KERNELS: dict[str, Callable[[torch.device], str]] = {
    PACKED: _best_kernel,
    PACKED_VARLEN: _varlen_kernel,
    PACKED_SDPA: sdpa_kernel,
}


@cache
def _has_varlen(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.cuda is None:  # ROCm calls its devices cuda too
        return device.type == "meta"
    return torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _flash_attn() -> Callable[..., Tensor] | None:
    """flash-attn's kernel for rows of varying length, None if it is not installed."""
    try:
        from flash_attn import flash_attn_varlen_func
    except ImportError:
        return None
    return flash_attn_varlen_func


def varlen(
    kernel: str,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    max_query: int,
    max_key: int,
    dropout: float = 0.0,
    scale: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Causal attention within samples of varying length, in one call.

    Args:
        kernel: "flash_attn" or "varlen".
        query: (Tq, h, d), those of all samples.
        key, value: (Tk, h, d), or fewer heads.
        cu_query, cu_key: (S + 1,) int32 boundaries.
        max_query, max_key: no sample has more.
        window: how many keys a query sees at most, its own with them.

    Returns:
        (Tq, h, d)
    """
    back = -1 if window is None else window - 1  # both kernels count the tokens before the query's own
    boundaries = (cu_query, cu_key, max_query, max_key)
    if kernel == "flash_attn":
        return _flash_attn()(
            *(query, key, value, *boundaries),
            dropout_p=dropout,
            softmax_scale=scale,
            causal=True,
            window_size=(back, 0),
            deterministic=torch.are_deterministic_algorithms_enabled(),
        )
    options: dict[str, Any] = {"scale": scale, "window_size": (back, 0)}
    if _VARLEN_KNOWS_GROUPS:
        options["enable_gqa"] = True
    elif (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))  # (Tk, h, d)
    return varlen_attn(query, key, value, *boundaries, **options)


def obstacle_of(kernel: str, query: Tensor, dropout: float) -> str | None:
    """Why a varlen kernel cannot take these queries."""
    width = query.shape[-1]
    if query.dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, not {str(query.dtype).removeprefix('torch.')}"
    if width > 256 or width % 8:
        return f"needs heads of at most 256 that are a multiple of 8, not {width}"
    if dropout and kernel == "varlen":
        return f"has no dropout (attention_dropout is {dropout})"
    return None
