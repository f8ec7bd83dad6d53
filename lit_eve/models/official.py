"""Weights in the layout of the official EVE v1 code (github.com/baaivision/EVE, folder EVEv1)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig

from lit_eve.errors import CheckpointError
from lit_eve.models.config import EveConfig
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD

_ATTENTION = {"q.0": "q_norm", "q.1": "q_projection", "kv.0": "kv_norm", "kv.1": "kv_projection", "proj": "out_projection"}

_RENAMES = [
    (r"model\.vision_tower\.patch_embedding\.", "patch_embedding.patch_projection."),
    *(
        (rf"model\.vision_tower\.(local|global)_attention\.{re.escape(theirs)}\.", rf"patch_embedding.\1_attention.{ours}.")
        for theirs, ours in _ATTENTION.items()
    ),
    (r"model\.vision_tower\.(class|split)_embedding", r"patch_embedding.\1_embedding"),
    (r"model\.mm_projector\.", "projector."),
    (r"model\.vision_tower_compressor\.norm_layer\.(\d+)\.0\.", r"aligner.norms.\1."),
    (r"model\.vision_tower_compressor\.norm_layer\.(\d+)\.1\.", r"aligner.projections.\1."),
    (r"model\.vision_tower_compressor\.(input|output)_layer\.", r"aligner.\1_layer."),
    (r"(model\.(?:embed_tokens|layers|norm)\.|lm_head\.)", r"language_model.\1"),
]

# The frozen teacher, twice; it is read from its own folder. Rotary frequencies follow from the config.
_DROPPED = re.compile(r"model\.vision_clip\.|model\.vision_tower_compressor\.clip_layer\.|.*\.rotary_emb\.inv_freq$")

_PATCH_PROJECTION = "patch_embedding.patch_projection.weight"  # theirs is the kernel of a convolution, (E, 3, p, p)

_NOT_OF_LLAMA = (
    *("mm_", "tune_mm_", "use_mm_", "image_aspect_ratio", "requires_cliploss"),
    *("architectures", "model_type", "transformers_version", "torch_dtype", "freeze_", "_"),
)


def is_official(config: dict[str, Any]) -> bool:
    """Whether a config.json is one of the official EVE v1 code."""
    return config.get("model_type") == "eve" and "mm_vision_tower" in config


def rename(key: str) -> str | None:
    """Our name of an official weight; None for the weights of the frozen teacher.

    Raises:
        CheckpointError: EVE v1 has no such weight.
    """
    if _DROPPED.match(key):
        return None
    for pattern, replacement in _RENAMES:
        if re.match(pattern, key):
            return re.sub(pattern, replacement, key, count=1)
    raise CheckpointError(f"{key!r} is no weight of an official EVE v1 checkpoint")


def read_config(folder: Path) -> EveConfig:
    """The official config.json and the preprocessor config that it points to, as an :class:`EveConfig`.

    Raises:
        CheckpointError: the image sizes cannot be found, neither in the folder that ``mm_vision_tower`` names (relative to
            ``folder``) nor in its name.
    """
    config = json.loads((folder / "config.json").read_text())
    tower = config["mm_vision_tower"]
    preprocessor = folder / tower / "preprocessor_config.json"
    if preprocessor.exists():
        sizes = json.loads(preprocessor.read_text())
    elif match := re.search(r"anypixel-(\d+)$", str(tower).rstrip("/")):
        sizes = {"image_size": int(match[1]), "patch_stride": 14, "conv_stride": 2}
        sizes |= {"image_size_clip": 336, "patch_stride_clip": 14}
    else:
        raise CheckpointError(
            f"{folder}: config.json names the vision tower {tower!r}, but there is no {preprocessor} "
            "and the name does not end in 'anypixel-<size>'"
        )
    projector = config.get("mm_projector_type", "linear")
    depth = 1 if projector == "linear" else int(re.fullmatch(r"mlp(\d+)x_gelu", projector)[1])
    text = {key: value for key, value in config.items() if value is not None and not key.startswith(_NOT_OF_LLAMA)}
    teacher = config.get("mm_vision_tower_clip")
    return EveConfig(
        text_config=LlamaConfig(**text),
        patch_embedding={"name": "eve_v1", "width": config["mm_hidden_size"]},
        projector={"name": "mlp_gelu", "depth": depth},
        geometry={
            "image_size": sizes["image_size"],
            "patch_size": sizes["patch_stride"],
            "pool_size": sizes["conv_stride"],
            "teacher_image_size": sizes["image_size_clip"],
            "teacher_patch_size": sizes["patch_stride_clip"],
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


def import_weight(key: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """An official weight under our name and in our shape; nothing for those that we do not keep."""
    if (name := rename(key)) is not None:
        yield name, value.flatten(1) if name == _PATCH_PROJECTION else value
