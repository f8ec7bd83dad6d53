"""Frozen linear layers in 4 bits (QLoRA, arXiv 2305.14314) by the library ``bitsandbytes``, while adapters beside them train.

A state dict holds what the layers compute with as ordinary weights. So checkpoints and exported models need no bitsandbytes,
and merging is exact. Packing these weights again gives the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.lora import lora_layers

BLOCK = 64
"""Numbers that share a scale."""


def check_installed() -> None:
    """Raise ConfigError without bitsandbytes."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"lora.quantization needs the package bitsandbytes: pip install bitsandbytes ({error})") from error


def quantize(language_model: nn.Module) -> None:
    """Pack the own weights of all layers that have adapters as NF4, in place, on the device where they are.

    Args:
        language_model: with adapters (:mod:`lit_eve.models.decoders.lora`).

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    check_installed()
    for layer in lora_layers(language_model).values():
        layer.base_layer = QuantizedLinear(layer.base_layer)


def unpacked_sizes(model: nn.Module) -> dict[str, int]:
    """How many numbers each packed weight holds, by its name."""
    return {
        f"{name}.weight": module.out_features * module.in_features
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
    }


class QuantizedLinear(nn.Module):
    """A linear layer whose weight is packed, and never trains.

    Args:
        linear: the layer; its bias is shared.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.out_features, linear.in_features
        self.dtype, self.bias = linear.weight.dtype, linear.bias
        self._pack(linear.weight.detach())

    def _pack(self, weight: Tensor) -> None:
        """(out, in) -> ``weight`` uint8 (blocks * 32, 1), ``scales`` float32 (blocks,) and ``code`` (16,)."""
        # One block to a row: on CPUs, bitsandbytes unpacks rows wrongly that are not made of whole blocks.
        blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
        if weight.is_meta:
            packed = weight.new_empty(blocks.numel() // 2, 1, dtype=torch.uint8)
            scales, code = weight.new_empty(len(blocks)), None
        else:
            from bitsandbytes.functional import quantize_4bit

            packed, state = quantize_4bit(blocks, blocksize=BLOCK, quant_type="nf4")
            scales, code = state.absmax, state.code
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", scales.float(), persistent=False)
        self.register_buffer("code", code, persistent=False)

    def unpacked(self) -> Tensor:
        """(out, in) in the dtype that the weight had."""
        shape = self.out_features, self.in_features
        if self.weight.is_meta:
            return self.weight.new_empty(shape, dtype=self.dtype)
        from bitsandbytes.functional import QuantState, dequantize_4bit

        state = QuantState(
            absmax=self.scales,
            shape=torch.Size((len(self.scales), BLOCK)),
            code=self.code,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
        )
        return dequantize_4bit(self.weight, state).flatten()[: self.out_features * self.in_features].view(shape)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        kind = tokens.device.type
        if kind != "meta" and torch.is_autocast_enabled(kind):
            tokens = tokens.to(torch.get_autocast_dtype(kind))
        return _Product.apply(tokens, self)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.unpacked().cpu()  # all of them at once would not fit where they are packed
        if self.bias is not None:
            destination[f"{prefix}bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, metadata: Any, strict: bool, missing: list[str], *others: Any
    ) -> None:
        for name in ("weight", *(["bias"] if self.bias is not None else [])):
            if (key := f"{prefix}{name}") not in state_dict:
                missing.append(key)
            elif name == "bias":
                self.bias.data.copy_(state_dict[key])
            else:
                self._pack(state_dict[key].to(self.weight.device, self.dtype))


class _Product(torch.autograd.Function):
    """x W^T + b, frozen, with a weight that is unpacked in both passes and kept in none."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(tokens.dtype)
        return F.linear(tokens, layer.unpacked().to(tokens.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        if not ctx.needs_input_grad[0]:
            return None, None
        return gradient @ ctx.layer.unpacked().to(gradient.dtype), None
