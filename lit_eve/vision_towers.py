"""Vision encoders of transformers whose patch features are used: as a frozen teacher, or in front of the decoder.

One table says in what the families differ. Hidden states are counted as transformers counts them: 0 is what the first block
reads, i is what block i returns. A norm behind the last block belongs to none of them.

Notation: N images, C side of a square image, K width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from lit_eve.errors import CheckpointError, ConfigError, not_found, one_line
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD

_HALF, _IMAGENET_MEAN, _IMAGENET_STD = (0.5, 0.5, 0.5), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalization(NamedTuple):
    """What is subtracted from pixels in 0..1, and what they are divided by then, per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class TowerFamily:
    """What vision transformers of one kind have in common.

    Args:
        title: its name in messages.
        model: class of transformers.
        blocks: where the list of blocks is in it.
        unused: what patch features of a hidden state do not need: the last norm, heads, tokens that mask patches.
        class_token: whether one stands before the patches; behind it stand ``config.num_register_tokens``, if there are any.
        stretches: it must be told to interpolate its positions where images have another size than its config says.
        pixels: normalisation where no preprocessor says another.
    """

    title: str
    model: str
    blocks: str
    unused: tuple[str, ...]
    class_token: bool
    stretches: bool
    pixels: Normalization


_CLIP = TowerFamily(
    "CLIP", "CLIPVisionModel", "encoder.layers", ("post_layernorm",), True, True, Normalization(CLIP_MEAN, CLIP_STD)
)
_SIGLIP = TowerFamily(
    "SigLIP", "SiglipVisionModel", "encoder.layers", ("post_layernorm", "head"), False, True, Normalization(_HALF, _HALF)
)
_IMAGENET = Normalization(_IMAGENET_MEAN, _IMAGENET_STD)
_DINO_UNUSED = ("layernorm", "embeddings.mask_token")

FAMILIES: dict[str, TowerFamily] = {
    "clip_vision_model": _CLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": TowerFamily("DINOv2", "Dinov2Model", "encoder.layer", _DINO_UNUSED, True, False, _IMAGENET),
    "dinov2_with_registers": TowerFamily(
        "DINOv2 with registers", "Dinov2WithRegistersModel", "encoder.layer", _DINO_UNUSED, True, False, _IMAGENET
    ),
    "dinov3_vit": TowerFamily(
        "DINOv3", "DINOv3ViTModel", "model.layer", ("norm", "embeddings.mask_token"), True, False, _IMAGENET
    ),
}
"""By ``model_type`` of the vision half. Checkpoints of SigLIP 2 with a fixed image size are of SigLIP's type."""

_WHOLE = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}
"""Models with a text half, and the type of their vision half."""
_NAFLEX = ("siglip2", "siglip2_vision_model")


def family_of(config: PreTrainedConfig) -> TowerFamily:
    """The family of a vision half's config."""
    return FAMILIES[config.model_type]


# ---- reading


def read_tower(name: str | Path, key: str) -> tuple[PreTrainedConfig, Normalization]:
    """Config of the vision half in a folder or on the hub, and the normalisation of its pixels; weights are not read.

    Args:
        name: folder or hub name.
        key: the setting that holds it ("model.teacher"), for messages.

    Raises:
        CheckpointError: there is none, it is of no family of :data:`FAMILIES`, or it does not see square RGB images of whole
            patches.
    """
    title = "vision encoder that can be loaded"
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise CheckpointError(f"{key}: {name} holds no config.json: it is no vision encoder")
    try:
        written, _ = PreTrainedConfig.get_config_dict(name)
    except OSError as error:
        raise not_found(key, name, title, error) from error
    kind = written.get("model_type")
    if kind in _WHOLE:
        kind, written = _WHOLE[kind], written.get("vision_config") or {}
    if kind in _NAFLEX:
        raise CheckpointError(
            f"{key}: {name} is of the type {kind!r} (NaFlex), whose images have no fixed size; take a SigLIP 2 of one size, "
            "such as google/siglip2-so400m-patch16-384"
        )
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{key}: {name} is of the type {kind!r}; a vision encoder must be a {known_titles()} "
            f"({', '.join(sorted(FAMILIES.keys() | _WHOLE.keys()))})"
        )
    try:
        config = tower_config({**written, "model_type": kind})
    except ConfigError as error:
        raise CheckpointError(f"{key}: {name}: its config.json describes no {FAMILIES[kind].title}: {error}") from error
    return config, read_normalization(name, FAMILIES[kind], key)


def tower_config(fields: Mapping[str, Any]) -> PreTrainedConfig:
    """The config of a vision half of its keys, ``model_type`` with them.

    Raises:
        ConfigError: unknown type, values that cannot be, or images that are no squares of RGB.
    """
    if (kind := fields.get("model_type")) not in FAMILIES:
        raise ConfigError(f"there is no vision encoder of the type {kind!r}; known: {', '.join(FAMILIES)}")
    try:
        config = AutoConfig.for_model(**fields)
    except Exception as error:  # of what stands in a file, transformers raises errors of all kinds
        raise ConfigError(one_line(error)) from error
    for name in ("image_size", "patch_size"):
        if isinstance(value := getattr(config, name), list | tuple):
            if len({*value}) != 1:
                raise ConfigError(f"{name} is {list(value)}, no square")
            setattr(config, name, value[0])
    if config.num_channels != 3:
        raise ConfigError(f"its images have {config.num_channels} channels, not 3")
    return config


def fields_of(config: PreTrainedConfig) -> dict[str, Any]:
    """The keys of a vision half's config that :func:`tower_config` makes it of again, as JSON has them."""
    common = {*PreTrainedConfig().to_dict(), "stage_names", "out_features", "out_indices"} - {"model_type"}
    return {key: value for key, value in json.loads(config.to_json_string(use_diff=False)).items() if key not in common}


def known_titles() -> str:
    """The families in words."""
    *first, last = (family.title for family in FAMILIES.values())
    return f"{', '.join(first)} or {last}"


def read_normalization(name: str | Path, family: TowerFamily, key: str) -> Normalization:
    """What ``preprocessor_config.json`` says (or a ``processor_config.json`` that holds it); the family's without them."""
    if (found := _preprocessor(name, key, "image_mean")) is None:
        return family.pixels
    path, content = found
    if not content.get("do_normalize", True):
        return Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    try:
        pixels = Normalization(*(tuple(map(float, content[side])) for side in ("image_mean", "image_std")))
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{key}: {path} describes no preprocessor: {one_line(error)}") from error
    if any(len(side) != 3 for side in pixels) or min(pixels.std) <= 0:
        raise CheckpointError(f"{key}: {path}: image_mean and image_std must be three numbers each, one per channel")
    return pixels


def other_resampling(name: str | Path, key: str) -> str | None:
    """How images were resized for a vision encoder, where it is not the bicubic filter that is used here."""
    found = _preprocessor(name, key, "resample")
    filter_ = None if found is None else found[1]["resample"]
    return None if filter_ in (None, Image.Resampling.BICUBIC) else _FILTERS.get(filter_, f"filter {filter_}")


_FILTERS = {filter_.value: filter_.name.lower() for filter_ in Image.Resampling}


def _preprocessor(name: str | Path, key: str, wanted: str) -> tuple[str, dict[str, Any]] | None:
    """Path and content of the first preprocessor's config that has a key."""
    quiet = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    for file, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (path := cached_file(str(name), file, **quiet)) is None:
            continue
        try:
            found = json.loads(Path(path).read_text())
            found = found.get(part, {}) if part else found
            if wanted in found:
                return path, found
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{key}: {path} describes no preprocessor: {one_line(error)}") from error
    return None


# ---- models


def build_tower(config: PreTrainedConfig) -> nn.Module:
    """The whole vision half, with random weights."""
    return getattr(transformers, family_of(config).model)(config)


def blocks_of_tower(tower: nn.Module) -> nn.ModuleList:
    """Its blocks."""
    return tower.get_submodule(family_of(tower.config).blocks)


def prefix_tokens(config: PreTrainedConfig) -> int:
    """Tokens that stand before the patches."""
    return int(family_of(config).class_token) + getattr(config, "num_register_tokens", 0)


def depth_of(config: PreTrainedConfig, layer: int, key: str) -> int:
    """The number of a hidden state, counted from 0, of one that may be counted from the end (-2: the last but one).

    Raises:
        ConfigError: there is none; the message begins with ``key``.
    """
    depth = config.num_hidden_layers + 1 + layer if layer < 0 else layer
    if not 0 <= depth <= config.num_hidden_layers:
        raise ConfigError(
            f"{key} = {layer} does not exist: the {family_of(config).title} has {config.num_hidden_layers} layers"
        )
    return depth


def cut_tower(tower: nn.Module, depth: int) -> nn.Module:
    """Drop in place what hidden states up to ``depth`` do not need; ``last_hidden_state`` is then the one of that number."""
    del blocks_of_tower(tower)[depth:]
    for path in family_of(tower.config).unused:
        parent, _, name = path.rpartition(".")
        owner = tower.get_submodule(parent)
        part = getattr(owner, name, None)
        if name == "head":
            owner.use_head = False
            owner._modules.pop(name, None)
        elif isinstance(part, nn.Parameter):  # no weight any more, but still there for the family's initialisation
            delattr(owner, name)
            owner.register_buffer(name, torch.zeros(part.shape, dtype=part.dtype), persistent=False)
        elif part is not None:
            setattr(owner, name, nn.Identity())
    return tower


def patch_states(tower: nn.Module, pixels: Tensor, every: bool = False) -> tuple[Tensor, ...]:
    """Hidden states at the patches of a tower that was cut.

    Args:
        pixels: (N, 3, C, C) float, normalised.
        every: all from 0 on, not the last alone.

    Returns:
        (N, (C / patch)^2, K) each: row-major patches, without class and register tokens.
    """
    config, family = tower.config, family_of(tower.config)
    stretch = {"interpolate_pos_encoding": True} if family.stretches and pixels.shape[-1] != config.image_size else {}
    output = tower(pixels, output_hidden_states=every, **stretch)
    states = output.hidden_states if every and len(blocks_of_tower(tower)) else (output.last_hidden_state,)
    return tuple(state[:, prefix_tokens(config) :] for state in states)


def load_tower(name: str | Path, config: PreTrainedConfig, key: str, **kwargs: Any) -> nn.Module:
    """The vision half with its weights, from a folder or hub name.

    Args:
        config: of it (:func:`read_tower`).
        key: the setting that holds the name, for messages.
        **kwargs: for ``from_pretrained``.

    Raises:
        CheckpointError: it cannot be read, or lacks weights.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a model with a text half would be reported weight by weight
    model = getattr(transformers, family_of(config).model)
    try:
        tower, info = model.from_pretrained(name, config=config, output_loading_info=True, **kwargs)
    except (OSError, ValueError, RuntimeError) as error:
        raise not_found(key, name, f"{family_of(config).title} that can be loaded", error) from error
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(
            f"{key}: {name} is no {family_of(config).title}: it lacks {missing[0]} and {len(missing) - 1} other weights"
        )
    return tower
