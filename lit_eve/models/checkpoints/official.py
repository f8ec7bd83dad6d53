"""The layout of the official EVE v1 code (github.com/baaivision/EVE, folder EVEv1): names of weights, shapes, config.json."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.config import EveConfig
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD

PREPROCESSOR = "preprocessor_config.json"
LINEAR_PROJECTOR = "linear"
TEACHER_PREFIXES = ("model.vision_clip.backbone.", "model.vision_tower_compressor.clip_layer.backbone.")
"""Two modules of the official code hold the frozen teacher: torch files have it twice, safetensors files once."""

_ATTENTION = {"q.0": "q_norm", "q.1": "q_projection", "kv.0": "kv_norm", "kv.1": "kv_projection", "proj": "out_projection"}
_COMPRESSOR = "model.vision_tower_compressor."

# (theirs, ours): beginnings of names, # a number. The first that fits decides.
_NAMES = [
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
_TEACHER = re.compile(r"model\.vision_clip\.|model\.vision_tower_compressor\.clip_layer\.")
_TABLE = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$|model\.vision_.*\.position_ids$")

_KERNEL = "patch_embedding.patch_projection.weight"  # theirs is the kernel of a convolution: (E, 3, p, p)

_NOT_OF_LLAMA = (
    *("mm_", "tune_mm_", "use_mm_", "image_aspect_ratio", "requires_cliploss"),
    *("architectures", "model_type", "transformers_version", "torch_dtype", "freeze_", "_"),
)
_OF_LLAMA = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache", "pretraining_tp"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)

_ROPE = ("rope_theta", "rope_scaling")  # as older versions of transformers wrote them


def is_official(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of the official EVE v1 code."""
    return config.get("model_type") == "eve" and "mm_vision_tower" in config


# ---- weights


def rename(key: str) -> str | None:
    """Our name of an official weight; None for the frozen teacher's, which is read from its own folder, and for tables of
    constants, which follow from the config.

    Raises:
        CheckpointError: EVE v1 has no such weight.
    """
    if is_teacher(key) or is_table(key):
        return None
    if key.startswith("model.mm_projector.") and key.count(".") == 2:  # 'linear': theirs is no sequence of layers
        key = key.replace("mm_projector.", "mm_projector.0.")
    if (name := _translate(key, *_INWARD)) is None:
        raise CheckpointError(f"{key!r} is no weight of an official EVE v1 checkpoint")
    return name


def restore(name: str, projector_type: str) -> str:
    """The official name of one of our weights; the inverse of :func:`rename`.

    Args:
        name: in :class:`~lit_eve.models.EveForConditionalGeneration`.
        projector_type: ``mm_projector_type`` of the official config.

    Raises:
        CheckpointError: the official code has no place for it.
    """
    if (key := _translate(name, *_OUTWARD)) is None:
        raise CheckpointError(f"the official EVE v1 code has no place for the weight {name!r}")
    return key.replace("mm_projector.0.", "mm_projector.") if projector_type == LINEAR_PROJECTOR else key


def is_teacher(key: str) -> bool:
    """Whether an official weight is one of the frozen teacher's."""
    return bool(_TEACHER.match(key))


def is_table(key: str) -> bool:
    """Whether it is a constant that old versions of transformers saved: rotary frequencies, position numbers."""
    return bool(_TABLE.match(key))


def import_weight(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """An official weight under our name and in our shape; nothing for those that we do not keep."""
    if (name := rename(key)) is not None:
        yield name, value.flatten(1) if name == _KERNEL and value.ndim == 4 else value


def export_value(name: str, value: Tensor, patch_size: int) -> Tensor:
    """One of our weights in the official shape."""
    return value.unflatten(1, (3, patch_size, patch_size)) if name == _KERNEL else value


def _translate(name: str, patterns: list[re.Pattern[str]], replacements: list[str]) -> str | None:
    for pattern, replacement in zip(patterns, replacements, strict=True):
        if pattern.match(name):
            return pattern.sub(replacement, name, count=1)
    return None


def _table(source: int, target: int) -> tuple[list[re.Pattern[str]], list[str]]:
    patterns = [re.compile(re.escape(pair[source]).replace(r"\#", r"(\d+)")) for pair in _NAMES]
    return patterns, [pair[target].replace("#", r"\1") for pair in _NAMES]


_INWARD, _OUTWARD = _table(0, 1), _table(1, 0)


# ---- config.json


def read_config(folder: Path, image_size: int | None = None) -> EveConfig:
    """The official config.json, and the preprocessor config that it points to, as an :class:`EveConfig`.

    Args:
        folder: holds config.json. A ``mm_vision_tower`` that is a folder in there is read; the ones that the released
            checkpoints name lie nowhere on the hub, so that the image size is taken from their name.
        image_size: instead of what the config says.

    Raises:
        CheckpointError: a key is missing or unknown, or the image size cannot be told.
    """
    path = folder / "config.json"
    config = read_json(path)
    if absent := [key for key in ("mm_vision_tower", "mm_hidden_size", "num_hidden_layers") if config.get(key) is None]:
        raise CheckpointError(f"{path} has no {absent[0]!r}, which every official EVE v1 checkpoint has")
    sizes = _read_sizes(folder, str(config["mm_vision_tower"]), image_size)
    # Of LLaMA's own keys only: the official training adds others, such as vision_tower_lr.
    known = {key for key in (*LlamaConfig().to_dict(), *_OF_LLAMA, *_ROPE) if not key.startswith(_NOT_OF_LLAMA)}
    text = {key: value for key, value in config.items() if key in known and value is not None}
    try:
        text_config = LlamaConfig(**text)
    except Exception as error:  # transformers has several of its own for values of the wrong kind
        raise CheckpointError(f"{path} describes no LLaMA: {error}") from error
    teacher = config.get("mm_vision_tower_clip")
    return EveConfig(
        text_config=text_config,
        patch_embedding={"name": "eve_v1", "width": config["mm_hidden_size"]},
        projector=_read_projector(path, config.get("mm_projector_type", LINEAR_PROJECTOR)),
        geometry={
            "image_size": sizes["image_size"],
            "patch_size": sizes["patch_stride"],
            "pool_size": sizes["conv_stride"],
            "name": "eve_v1",
            "cells": sizes["image_size_clip"] // sizes["patch_stride_clip"],
        },
        aligner={"name": "layerwise"} if config.get("requires_cliploss") else None,
        teacher=None if teacher is None else str(folder / teacher if (folder / teacher).exists() else teacher),
        teacher_layer=config.get("mm_vision_select_layer", -2),
        image_mean=sizes.get("image_mean", CLIP_MEAN),
        image_std=sizes.get("image_std", CLIP_STD),
        bos_token_id=config.get("bos_token_id"),
        eos_token_id=config.get("eos_token_id"),
        pad_token_id=config.get("pad_token_id"),
    )


def write_config(config: EveConfig, dtype: str) -> dict[str, Any]:
    """The official config.json of an architecture, with every key that the official code reads.

    Args:
        config: the architecture.
        dtype: of the weights, as in "bfloat16".

    Raises:
        CheckpointError: the official code cannot express it; the message names the key.
    """
    text, geometry = config.text_config, config.image_geometry
    rope = dict(text.rope_parameters) if text.model_type == "llama" else {}
    scaling = {key: rope[key] for key in ("rope_type", "factor") if key in rope and rope["rope_type"] != "default"}
    aligner = {"layer_interval": 4, "num_heads": 8} | (config.aligner or {"name": "layerwise"})
    for key, found, possible in (
        ("text_config.model_type", text.model_type, ("llama",)),
        ("text_config.attention_bias", getattr(text, "attention_bias", False), (False,)),
        ("text_config.mlp_bias", getattr(text, "mlp_bias", False), (False,)),
        ("text_config.head_dim", getattr(text, "head_dim", None), (text.hidden_size // text.num_attention_heads,)),
        ("text_config.rope_parameters.rope_type", rope.get("rope_type"), ("default", "linear", "dynamic")),
        ("decoder_kind.name", config.decoder_kind["name"], ("dense",)),
        ("patch_embedding.name", config.patch_embedding["name"], ("eve_v1",)),
        ("patch_embedding.num_heads", config.patch_embedding.get("num_heads", 8), (8,)),
        ("image_attention.name", config.image_attention["name"], ("causal",)),
        ("projector.name", config.projector["name"], ("mlp_gelu", "identity")),
        ("geometry.name", config.geometry["name"], ("eve_v1",)),
        ("geometry.class_token", geometry.class_token, (True,)),
        ("geometry.split_token", geometry.split_token, (True,)),
        ("aligner.name", aligner["name"], ("layerwise",)),
        ("aligner.layer_interval", aligner["layer_interval"], (4,)),
        ("aligner.num_heads", aligner["num_heads"], (8,)),
    ):
        if found not in possible:
            raise CheckpointError(
                f"the official EVE v1 code has no model with {key} = {found!r}, only {' or '.join(map(repr, possible))}"
            )
    depth = config.projector.get("depth", 2)
    return {
        "architectures": ["EVELlamaForCausalLM"],
        "model_type": "eve",
        **{key: getattr(text, key) for key in _OF_LLAMA},
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


def write_preprocessor(config: EveConfig) -> dict[str, Any]:
    """The preprocessor config that ``mm_vision_tower`` of the official code stands for."""
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


def _read_sizes(folder: Path, tower: str, image_size: int | None) -> dict[str, Any]:
    wanted = {} if image_size is None else {"image_size": image_size}
    path = folder / tower / PREPROCESSOR
    if path.exists():
        sizes = read_json(path)
        keys = ("image_size", "patch_stride", "conv_stride", "image_size_clip", "patch_stride_clip")
        if absent := [key for key in keys if key not in sizes]:
            raise CheckpointError(f"{path} has no {absent[0]!r}: it is no preprocessor of EVE v1")
        return sizes | wanted
    # openai/eve-patch14-anypixel-672, checkpoints/.../eve-patch14-anypixel-1344/, eve_anypixel1344, ...
    if match := re.search(r"anypixel\D{0,2}(\d{3,4})(?!\d)", tower) or re.search(r"(?<!\d)(672|1344)(?!\d)", tower):
        wanted = {"image_size": int(match[1])} | wanted
    if not wanted:
        raise CheckpointError(
            f"{folder}: the image size cannot be told: config.json names the vision tower {tower!r}, there is no {path}, and "
            "the name does not end in anypixel-672 or anypixel-1344; give it: image_size=672, or --image-size 672"
        )
    return {"patch_stride": 14, "conv_stride": 2, "image_size_clip": 336, "patch_stride_clip": 14} | wanted


def _read_projector(path: Path, name: str) -> dict[str, Any]:
    if name == "identity":
        return {"name": "identity"}
    if name == LINEAR_PROJECTOR:
        return {"name": "mlp_gelu", "depth": 1}
    if match := re.fullmatch(r"mlp(\d+)x_gelu", name):
        return {"name": "mlp_gelu", "depth": int(match[1])}
    raise CheckpointError(f"{path}: mm_projector_type is {name!r}; known are linear, mlp<n>x_gelu and identity")
