"""The layout of llava-hf/llava-1.5-7b-hf, and of what ``LlavaForConditionalGeneration`` of transformers saves."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlavaConfig

from lit_eve.errors import CheckpointError, ConfigError, one_line
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.checkpoints.official.base import ENDS, NameTable, OfficialLayout, image_processor_of
from lit_eve.models.config import EveConfig
from lit_eve.vision_towers import depth_of, family_of, fields_of, prefix_tokens, read_normalization, tower_config

_TOWER = "patch_embedding.tower."
_FIXED = {
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), True),
    "resample": 3,
    "rescale_factor": 1 / 255,
}
"""What can be told to the image processor, and every LLaVA-1.5 has so."""


class LlavaLayout(OfficialLayout):
    """A vision tower of CLIP or SigLIP, two linear layers with GELU between them, and any decoder of transformers.

    Names are those of the hub, or those that transformers 5 has in memory. The tower's layers behind ``vision_feature_layer``
    and its last norm compute nothing that LLaVA looks at; they are left out.

    Args:
        depth: blocks of the tower that are kept, known of a folder.
    """

    title = "LLaVA-1.5"
    names = NameTable(
        [
            *(
                (f"{prefix}{theirs}", ours)
                for prefix in ("", "model.")
                for theirs, ours in (
                    ("vision_tower.vision_model.", _TOWER),
                    ("vision_tower.", _TOWER),
                    ("multi_modal_projector.linear_1.", "projector.0."),
                    ("multi_modal_projector.linear_2.", "projector.2."),
                )
            ),
            ("language_model.", "language_model."),
            ("model.language_model.", "language_model.model."),
            ("lm_head.", "language_model.lm_head."),
        ]
    )

    def __init__(self, depth: int | None = None) -> None:
        self.depth = depth

    def matches(self, theirs: Mapping[str, Any]) -> bool:
        return theirs.get("model_type") == "llava"

    def bound_to(self, folder: Path) -> LlavaLayout:
        config = _read(folder / "config.json")
        return LlavaLayout(_depth(folder / "config.json", config))

    def import_name(self, key: str) -> str | None:
        name = super().import_name(key)
        if name is None or not name.startswith(_TOWER):
            return name
        inner = name.removeprefix(_TOWER)
        block = re.match(r"encoder\.layers\.(\d+)\.", inner)
        left_out = int(block[1]) >= self.depth if block else inner.startswith(("post_layernorm.", "head."))
        return None if left_out or inner == "embeddings.position_ids" else name

    def import_value(self, name: str, value: Tensor) -> Tensor:
        return value

    def read_config(self, folder: Path, image_size: int | None = None) -> EveConfig:
        path = folder / "config.json"
        if image_size is not None:
            raise CheckpointError(f"{folder}: image_size has no meaning for LLaVA-1.5, whose vision tower knows it")
        config, theirs = _read(path), read_json(path)
        depth, text, vision = _depth(path, config), copy.deepcopy(config.text_config), config.vision_config
        tower = tower_config(fields_of(vision))
        strategy = "default" if prefix_tokens(tower) else "full"
        for key, wanted in (
            ("vision_feature_select_strategy", strategy),
            ("projector_hidden_act", "gelu"),
            ("multimodal_projector_bias", True),
        ):
            if (found := getattr(config, key)) != wanted:
                raise CheckpointError(f"{path}: {key} is {found!r}; of this vision tower it can only be {wanted!r}")
        text.tie_word_embeddings = config.tie_word_embeddings
        pixels = read_normalization(folder, family_of(tower), str(folder))
        return EveConfig(
            text_config=text,
            patch_embedding={"name": "vision_tower", "tower": fields_of(tower), "layer": depth},
            projector={"name": "mlp_gelu"},
            geometry={
                "name": "square",
                "patch_size": tower.patch_size,
                **_fit(folder, tower.image_size),
                "background": [int(255 * value) for value in pixels.mean],
            },
            image_mean=pixels.mean,
            image_std=pixels.std,
            image_token_id=config.image_token_id,
            tie_word_embeddings=config.tie_word_embeddings,
            **{key: theirs.get(key, getattr(text, key, None)) for key in ENDS},
        )


def _read(path: Path) -> LlavaConfig:
    try:
        return LlavaConfig.from_dict(dict(read_json(path)))
    except CheckpointError:
        raise
    except Exception as error:  # transformers has several of its own for values of the wrong kind
        raise CheckpointError(f"{path} describes no LLaVA: {one_line(error)}") from error


def _depth(path: Path, config: LlavaConfig) -> int:
    """Which hidden state of the tower is read, counted from 0."""
    vision, layer = config.vision_config, config.vision_feature_layer
    if vision.model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise CheckpointError(f"{path}: the vision tower of a LLaVA-1.5 is a CLIP or a SigLIP, not a {vision.model_type}")
    if not isinstance(layer, int):
        raise CheckpointError(f"{path}: vision_feature_layer is {layer!r}; features of several layers are not read")
    try:
        return depth_of(vision, layer, "vision_feature_layer")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _fit(folder: Path, side: int) -> dict[str, Any]:
    """How a photo becomes a square, as the settings of the image processor say; without them, padded as upstream does."""
    path, found = image_processor_of(folder)
    if not found:
        return {"image_size": side, "fit": "pad"}
    for key, value in _FIXED.items():
        if found.get(key, value) != value:
            raise CheckpointError(f"{path}: {key} is {found[key]!r}; of a LLaVA-1.5 it can only be {value!r}")
    size, crop = (_sides(found.get(key)) for key in ("size", "crop_size"))
    crops = found.get("do_center_crop", True) and crop is not None
    if size is None or {*size, *(crop if crops else ())} != {side} or (len(size) == 1 and not crops):
        raise CheckpointError(
            f"{path}: size and crop_size are {found.get('size')} and {found.get('crop_size')}; of this vision tower they can "
            f"only be {side}"
        )
    return {"image_size": side, "fit": "pad" if found.get("do_pad") else "crop" if len(size) == 1 else "stretch"}


def _sides(size: Any) -> tuple[Any, ...] | None:
    """The sides that a size of an image processor names: the shortest edge alone, or both."""
    if isinstance(size, Mapping):
        return (size["shortest_edge"],) if "shortest_edge" in size else (size.get("height"), size.get("width"))
    return None if size is None else (size,)
