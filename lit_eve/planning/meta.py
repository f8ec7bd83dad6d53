"""The meta device, where tensors have sizes but no contents, stands for a GPU whose attention kernels keep no scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, masking_utils

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.families import keeps_samples_apart


@contextmanager
def shapes_alone(what: str) -> Iterator[None]:
    """A sentence where a model that runs inside, on the meta device, asks what is in a tensor.

    Raises:
        ConfigError: ``what`` cannot be planned.
    """
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error).lower():
            raise
        raise ConfigError(f"{what} cannot be planned: what is in a tensor is asked for, not its shape ({error})") from error


@contextmanager
def fused_attention() -> Iterator[None]:
    """On the meta device, SDPA takes the kernels that it has on a GPU; by itself it would write out all scores there.

    The function is replaced, for a TorchFunctionMode does not reach what is computed again in the backward pass.
    """
    plain = F.scaled_dot_product_attention

    def attention(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return (_fused_attention if query.device.type == "meta" else plain)(query, *args, **kwargs)

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """(B, h, T, d) queries, keys and values -> (B, h, T, d), as on a GPU: flash attention, or the kernel with masks."""
    options = {"dropout_p": dropout_p, "is_causal": is_causal, "scale": scale}
    if attn_mask is None and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] == value.shape[-1]:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, **options)[0]
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    if attn_mask is not None:
        attn_mask = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])  # a bool becomes numbers to add
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True, **options)[0]


@contextmanager
def packing_from_shapes(decoder: PreTrainedModel) -> Iterator[None]:
    """transformers asks the positions whether rows hold several samples; on the meta device the family says it.

    Where lit_eve lays samples side by side, each row is one.
    """
    apart, asked = keeps_samples_apart(decoder.config), masking_utils.find_packed_sequence_indices

    def known(position_ids: Tensor) -> Tensor | None:
        if position_ids.device.type != "meta":
            return asked(position_ids)
        return torch.empty_like(position_ids) if apart else None

    masking_utils.find_packed_sequence_indices = known
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = asked
