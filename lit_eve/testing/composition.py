"""A tiny random model of a composition of parts, with a teacher where one is needed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel

from lit_eve.errors import ConfigError
from lit_eve.losses import FrozenTeacher
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.supervision import needs_teacher
from lit_eve.processing import ImageGeometry

KEYS = tuple(key for key in EveConfig.__annotations__ if key not in ("model_type", "imports", "image_token_id"))
"""What a composition may say, as in ``config.json``."""
DECODER = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GEOMETRY = {"name": "eve_v1", "image_size": 32, "patch_size": 4, "pool_size": 2, "cells": 4}
PATCH_EMBEDDING = {"name": "linear", "width": 16}
_STD = 0.15  # larger than the usual initialisation, so that differences show


def config_of(composition: EveConfig | Mapping[str, Any]) -> EveConfig:
    """The config of a composition; what it does not say is tiny, and as simple as can be.

    Raises:
        ConfigError: a key, name or argument that does not exist.
    """
    config = copy.deepcopy(composition) if isinstance(composition, EveConfig) else _around_a_tiny_decoder(composition)
    config.teacher_image_size = None  # of another teacher than the tiny one
    return config


def _around_a_tiny_decoder(composition: Mapping[str, Any]) -> EveConfig:
    if unknown := [key for key in composition if key not in KEYS]:
        raise ConfigError(f"a composition has no key {unknown[0]!r}; it takes: {', '.join(KEYS)}")
    parts = {"geometry": GEOMETRY, "patch_embedding": PATCH_EMBEDDING}
    parts |= {key: copy.deepcopy(value) for key, value in composition.items() if value is not None}
    text = parts.pop("text_config", {})
    return EveConfig(text_config={**DECODER, **(text if isinstance(text, Mapping) else text.to_dict())}, **parts)


def build(
    config: EveConfig, model_class: type[EveForConditionalGeneration] = EveForConditionalGeneration, seed: int = 0
) -> EveForConditionalGeneration:
    """The model in eval mode, float32, all weights at random, with the heads of its supervisions."""
    torch.manual_seed(seed)
    model = model_class(copy.deepcopy(config))
    attach(model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not name.startswith("teacher."):
            nn.init.normal_(parameter, std=_STD, generator=generator)
    return model.eval()


def attach(model: EveForConditionalGeneration) -> None:
    """Add the heads of its supervisions, and a tiny random teacher if one of them looks at it."""
    config = model.config
    model.attach_supervision(tiny_teacher(model.geometry, config.teacher_layer) if wants_teacher(config) else None)


def wants_teacher(config: EveConfig) -> bool:
    """Whether a model is trained beside a teacher: a supervision looks at it, or patch alignment is meant."""
    if config.supervision is not None:
        return any(needs_teacher(entry["name"]) for entry in config.supervision)
    return config.teacher is not None or config.aligner is not None


def tiny_vision_config(geometry: ImageGeometry) -> CLIPVisionConfig:
    """Of a CLIP whose patches lie on the geometry's tokens; whatever size where no teacher's can."""
    side = geometry.longest_side or 8
    if side % geometry.side_step == 0:
        side //= geometry.side_step
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=8 * side, patch_size=8
    )


def tiny_teacher(geometry: ImageGeometry, select_layer: int) -> FrozenTeacher:
    """A frozen random CLIP."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return FrozenTeacher(CLIPVisionModel(tiny_vision_config(geometry)), select_layer)
