"""Tiny random vision encoders of all families."""

from __future__ import annotations

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}
_SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64, "patch_size": 8}
_WITH_MLP = {**_SIZES, "intermediate_size": 32}
CONFIGS = {
    "clip": {"model_type": "clip_vision_model", **_WITH_MLP},
    "siglip": {"model_type": "siglip_vision_model", **_WITH_MLP},
    "dinov2": {"model_type": "dinov2", **_SIZES, "mlp_ratio": 2},
    "dinov2_swiglu": {"model_type": "dinov2", **_SIZES, "use_swiglu_ffn": True},
    "dinov2_registers": {"model_type": "dinov2_with_registers", **_SIZES, "mlp_ratio": 2, "num_register_tokens": 2},
    "dinov3": {"model_type": "dinov3_vit", **_WITH_MLP, "num_register_tokens": 3},
}
WHOLE = ("clip", "siglip")
"""Families that exist with a text half, too."""


def make(kind: str, **sizes: int) -> nn.Module:
    """A vision half in which every weight matters: none is zero or one."""
    torch.manual_seed(0)
    return _filled(AutoModel.from_config(AutoConfig.for_model(**{**CONFIGS[kind], **sizes})))


def make_whole(kind: str) -> nn.Module:
    """With a text half beside it."""
    torch.manual_seed(0)
    vision = {key: value for key, value in CONFIGS[kind].items() if key != "model_type"}
    return _filled(AutoModel.from_config(AutoConfig.for_model(kind, text_config=TEXT, vision_config=vision)))


def _filled(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.2)
    return model.eval()
