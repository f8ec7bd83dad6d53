"""The layout of the official EVE v1 code (github.com/baaivision/EVE, folder EVEv1)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.checkpoints.official.base import NameTable, is_pixel_kernel
from lit_eve.models.checkpoints.official.eve import TEXT_KEYS, EveLayout, read_text_config
from lit_eve.models.config import EveConfig

_LINEAR = "linear"
_ATTENTION = {"q.0": "q_norm", "q.1": "q_projection", "kv.0": "kv_norm", "kv.1": "kv_projection", "proj": "out_projection"}
_COMPRESSOR = "model.vision_tower_compressor."

# (theirs, ours): beginnings of names, # a number. The first that fits decides.
_NAMES = NameTable(
    [
        ("model.vision_tower.patch_embedding.", "patch_embedding.patch_projection."),
        *(
            (f"model.vision_tower.{scope}_attention.{theirs}.", f"patch_embedding.{scope}_attention.{ours}.")
            for scope in ("local", "global")
            for theirs, ours in _ATTENTION.items()
        ),
        ("model.vision_tower.class_embedding", "patch_embedding.class_embedding"),
        ("model.vision_tower.split_embedding", "patch_embedding.split_embedding"),
        ("model.mm_projector.", "projector."),
        (f"{_COMPRESSOR}norm_layer.#.0.", "aligner.norms.#."),
        (f"{_COMPRESSOR}norm_layer.#.1.", "aligner.projections.#."),
        *((f"{_COMPRESSOR}{side}_layer.", f"aligner.{side}_layer.") for side in ("input", "output")),
        *((f"model.{part}.", f"language_model.model.{part}.") for part in ("embed_tokens", "layers", "norm")),
        ("lm_head.", "language_model.lm_head."),
    ]
)
_TEACHER = re.compile(r"model\.vision_clip\.|model\.vision_tower_compressor\.clip_layer\.")
_KERNEL = "patch_embedding.patch_projection.weight"  # theirs is the kernel of a convolution: (E, 3, p, p)


class EveV1Layout(EveLayout):
    """Checkpoints of EVE v1: a LLaMA, a patch embedding with attention, an aligner, and copies of a frozen CLIP.

    A ``mm_vision_tower`` that is a folder in the checkpoint is read; the ones that the released checkpoints name lie nowhere on
    the hub, so that the image size is taken from their name.
    """

    title = "EVE v1"
    patch_embedding = "eve_v1"
    size_key = "image_size"
    # Two modules of the official code hold the teacher: torch files have it twice, safetensors files once.
    teacher_prefixes = ("model.vision_clip.backbone.", "model.vision_tower_compressor.clip_layer.backbone.")
    names = _NAMES
    usual_sizes = {"patch_stride": 14, "conv_stride": 2, "image_size_clip": 336, "patch_stride_clip": 14}
    # openai/eve-patch14-anypixel-672, checkpoints/.../eve-patch14-anypixel-1344/, eve_anypixel1344, ...
    size_in_name = (r"anypixel\D{0,2}(\d{3,4})(?!\d)", r"(?<!\d)(672|1344)(?!\d)")
    size_hint = "the name does not end in anypixel-672 or anypixel-1344; give it: image_size=672, or --image-size 672"

    def matches(self, theirs: Mapping[str, Any]) -> bool:
        return theirs.get("model_type") == "eve" and "mm_vision_tower" in theirs

    def import_name(self, key: str) -> str | None:
        if key.startswith("model.mm_projector.") and key.count(".") == 2:  # 'linear': theirs is no sequence of layers
            key = key.replace("mm_projector.", "mm_projector.0.")
        return super().import_name(key)

    def export_name(self, name: str, theirs: Mapping[str, Any]) -> str:
        key = super().export_name(name, theirs)
        linear = theirs.get("mm_projector_type", _LINEAR) == _LINEAR
        return key.replace("mm_projector.0.", "mm_projector.") if linear else key

    def import_value(self, name: str, value: Tensor) -> Tensor:
        return value.flatten(1) if name == _KERNEL and is_pixel_kernel(value) else value

    def export_value(self, name: str, value: Tensor, config: EveConfig) -> Tensor:
        patch = config.image_geometry.patch_size
        return value.unflatten(1, (3, patch, patch)) if name == _KERNEL else value

    def is_teacher(self, key: str) -> bool:
        return bool(_TEACHER.match(key))

    def notes(self, folder_name: str, files: Iterable[str]) -> list[str]:
        notes = []
        if "eve" not in folder_name.lower():
            notes.append("the official code loads an EVE only from a folder with 'eve' in its name")
        if "tokenizer.model" not in files:
            notes.append("the official code needs tokenizer.model; name a folder that has it with --tokenizer")
        return notes

    def read_parts(self, path: Path, theirs: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        teacher = theirs.get("mm_vision_tower_clip")
        if teacher is not None and (path.parent / teacher).exists():
            teacher = str(path.parent / teacher)
        return {
            "text_config": read_text_config(path, theirs, LlamaConfig, "LLaMA"),
            "patch_embedding": {"name": "eve_v1", "width": theirs["mm_hidden_size"]},
            "projector": _read_projector(path, theirs.get("mm_projector_type", _LINEAR)),
            "geometry": {
                "name": "eve_v1",
                "image_size": sizes["image_size"],
                "patch_size": sizes["patch_stride"],
                "pool_size": sizes["conv_stride"],
                "cells": sizes["image_size_clip"] // sizes["patch_stride_clip"],
            },
            "aligner": {"name": "layerwise"} if theirs.get("requires_cliploss") else None,
            "teacher": teacher,
            "teacher_layer": theirs.get("mm_vision_select_layer", -2),
        }

    def write_config(self, config: EveConfig, dtype: str) -> dict[str, Any]:
        text, geometry = config.text_config, config.image_geometry
        rope = dict(text.rope_parameters) if text.model_type == "llama" else {}
        scaling = {key: rope[key] for key in ("rope_type", "factor") if key in rope and rope["rope_type"] != "default"}
        aligner = {"layer_interval": 4, "num_heads": 8} | (config.aligner or {"name": "layerwise"})
        self.check(
            (
                ("text_config.model_type", text.model_type, ("llama",)),
                ("text_config.attention_bias", getattr(text, "attention_bias", False), (False,)),
                ("text_config.mlp_bias", getattr(text, "mlp_bias", False), (False,)),
                ("text_config.head_dim", getattr(text, "head_dim", None), (text.hidden_size // text.num_attention_heads,)),
                ("text_config.rope_parameters.rope_type", rope.get("rope_type"), ("default", "linear", "dynamic")),
                ("decoder_kind.name", config.decoder_kind["name"], ("dense",)),
                ("patch_embedding.name", config.patch_embedding["name"], ("eve_v1",)),
                ("patch_embedding.attend_windows", config.patch_embedding.get("attend_windows", True), (True,)),
                ("patch_embedding.attend_images", config.patch_embedding.get("attend_images", True), (True,)),
                ("patch_embedding.num_heads", config.patch_embedding.get("num_heads", 8), (8,)),
                ("image_attention.name", config.image_attention["name"], ("causal",)),
                ("positions.name", config.positions["name"], ("sequential",)),
                ("projector.name", config.projector["name"], ("mlp_gelu", "identity")),
                ("geometry.name", config.geometry["name"], ("eve_v1",)),
                ("geometry.class_token", geometry.class_token, (True,)),
                ("geometry.split_token", geometry.split_token, (True,)),
                ("aligner.name", aligner["name"], ("layerwise",)),
                ("aligner.layer_interval", aligner["layer_interval"], (4,)),
                ("aligner.num_heads", aligner["num_heads"], (8,)),
            )
        )
        depth = config.projector.get("depth", 2)
        return {
            "architectures": ["EVELlamaForCausalLM"],
            "model_type": "eve",
            **{key: getattr(text, key) for key in (*TEXT_KEYS, "pretraining_tp")},
            "rope_theta": rope["rope_theta"],
            "rope_scaling": {"type": scaling["rope_type"], "factor": scaling["factor"]} if scaling else None,
            "torch_dtype": dtype,
            "image_aspect_ratio": "square",
            "mm_hidden_size": config.patch_embedding.get("width", 1024),
            "mm_projector_type": "identity" if config.projector["name"] == "identity" else f"mlp{depth}x_gelu",
            "mm_use_im_patch_token": False,
            "mm_use_im_start_end": False,
            "mm_vision_select_feature": "patch",
            "mm_vision_select_layer": config.teacher_layer,
            "mm_vision_tower": f"openai/eve-patch{geometry.patch_size}-anypixel-{geometry.image_size}",
            "mm_vision_tower_clip": config.teacher or "openai/clip-vit-large-patch14-336",
            "requires_cliploss": config.aligner is not None,
            "use_mm_proj": True,
        }

    def write_preprocessor(self, config: EveConfig) -> dict[str, Any]:
        geometry = config.image_geometry
        return {
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "do_center_crop": True,
            "do_normalize": True,
            "resample": 3,
            "size": geometry.image_size,
            "crop_size": geometry.image_size,
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
            "image_size": geometry.image_size,
            "patch_stride": geometry.patch_size,
            "conv_stride": geometry.pool_size,
            "image_size_clip": geometry.cells * (patch := _teacher_patch(config)),
            "patch_stride_clip": patch,
        }


def _teacher_patch(config: EveConfig) -> int:
    """Side of a patch of the teacher; of one that is not here CLIP-L/14's, if whole cells can be made of it."""
    path = Path(config.teacher or "", "config.json")
    if path.is_file():
        found = read_json(path)
        return found.get("vision_config", found)["patch_size"]
    cell = config.image_geometry.cell_size
    return cell if cell % 14 else 14


def _read_projector(path: Path, name: str) -> dict[str, Any]:
    if name == "identity":
        return {"name": "identity"}
    if name == _LINEAR:
        return {"name": "mlp_gelu", "depth": 1}
    if match := re.fullmatch(r"mlp(\d+)x_gelu", name):
        return {"name": "mlp_gelu", "depth": int(match[1])}
    raise CheckpointError(f"{path}: mm_projector_type is {name!r}; known are linear, mlp<n>x_gelu and identity")
