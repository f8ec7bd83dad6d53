"""The layout of the official EVE v2 code (github.com/baaivision/EVE, folder EVEv2) around Qwen2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from einops import rearrange
from torch import Tensor
from transformers import Qwen2Config

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.official.base import ENDS, NameTable, is_pixel_kernel, is_square_kernel
from lit_eve.models.checkpoints.official.eve import TEXT_KEYS, EveLayout, read_text_config
from lit_eve.models.config import EveConfig
from lit_eve.models.decoders.experts import PARTS

_LAYER, _OUR_LAYER = "model.layers.#.", "language_model.model.layers.#."
_MOE_PARTS = {"layernorm": "norms", "self_attn": "attention", "mlp": "mlp"}  # theirs: ours, in the official order

_PATCHES, _WINDOWS = "patch_embedding.patch_projection.weight", "patch_embedding.window_projection.weight"
# Theirs are kernels of convolutions: (E, 3, p, p) over pixels, (D, E, i, j) over the patches of a window.
_WINDOW_KERNEL, _WINDOW_MATRIX = "d e i j", "d (i j e)"

_FIXED = {"do_resize": False, "do_center_crop": False, "do_normalize": True}
"""What the official code, which resizes images itself, asks of its preprocessor."""


class EveV2Layout(EveLayout):
    """Checkpoints of EVE v2: a Qwen2, dense or with experts per modality (``moe_*`` weights), and two convolutions.

    ``mm_vision_tower`` is a folder of one file, its preprocessor config. Where it is not in the checkpoint, the image size is
    taken from its name.
    """

    title = "EVE v2"
    patch_embedding = "eve_v2"
    size_key = "max_size"
    usual_sizes = {"patch_stride": 16, "dense_stride": 2}
    size_in_name = (r"res(\d{3,4})(?!\d)",)  # openai/eve-anyratio-res1600-patch16
    size_hint = "the name holds no res800 or res1600; give it: image_size=1600, or --image-size 1600"
    names = NameTable(
        [
            ("model.vision_tower.patch_embedding.0.", "patch_embedding.patch_projection."),
            ("model.vision_tower.patch_embedding.2.", "patch_embedding.window_projection."),
            ("model.vision_tower.class_embedding", "patch_embedding.class_embedding"),
            ("model.vision_tower.split_embedding", "patch_embedding.split_embedding"),
            *((f"{_LAYER}self_attn.moe_{x}_proj.", f"{_OUR_LAYER}self_attn.{x}_proj.image.") for x in "qkvo"),
            (f"{_LAYER}moe_mlp.", f"{_OUR_LAYER}mlp.image."),
            *((f"{_LAYER}moe_{x}_layernorm.", f"{_OUR_LAYER}{x}_layernorm.image.") for x in ("input", "post_attention")),
            *((f"model.{part}.", f"language_model.model.{part}.") for part in ("embed_tokens", "layers", "norm")),
            ("lm_head.", "language_model.lm_head."),
        ]
    )

    def matches(self, theirs: Mapping[str, Any]) -> bool:
        return theirs.get("model_type") == "eve-qwen2"

    def import_value(self, name: str, value: Tensor) -> Tensor:
        if name == _PATCHES and is_pixel_kernel(value):
            return value.flatten(1)
        if name == _WINDOWS and is_square_kernel(value):
            return rearrange(value, f"{_WINDOW_KERNEL} -> {_WINDOW_MATRIX}")
        return value

    def export_value(self, name: str, value: Tensor, config: EveConfig) -> Tensor:
        patch, pool = config.image_geometry.patch_size, config.image_geometry.pool_size
        if name == _PATCHES:
            return value.unflatten(1, (3, patch, patch))
        if name == _WINDOWS:
            return rearrange(value, f"{_WINDOW_MATRIX} -> {_WINDOW_KERNEL}", i=pool, j=pool)
        return value

    def read_config(self, folder: Path, image_size: int | None = None) -> EveConfig:
        config = super().read_config(folder, image_size)
        self._check(config)  # what the official code would pass over, such as sliding windows
        return config

    def read_parts(self, path: Path, theirs: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "text_config": read_text_config(path, theirs, Qwen2Config, "Qwen2"),
            "decoder_kind": _read_decoder_kind(path, theirs),
            "patch_embedding": {"name": "eve_v2", "patch_width": theirs["mm_hidden_size"]},
            "projector": {"name": "identity"},
            "geometry": {
                "name": "eve_v2",
                "patch_size": sizes["patch_stride"],
                "pool_size": sizes["dense_stride"],
                "max_size": sizes["max_size"],
            },
        }

    def check_sizes(self, path: Path, sizes: Mapping[str, Any]) -> None:
        for key, value in _FIXED.items():
            if sizes.get(key, value) != value:
                raise CheckpointError(f"{path}: {key} is {sizes[key]!r}, which no EVE v2 has")

    def write_config(self, config: EveConfig, dtype: str) -> dict[str, Any]:
        self._check(config)
        text, geometry, kind = config.text_config, config.image_geometry, config.decoder_kind
        ours = kind.get("parts", PARTS) if kind["name"] == "experts" else ()
        return {
            "architectures": ["EVEQwen2ForCausalLM"],
            "model_type": "eve-qwen2",
            **{key: getattr(text, key) for key in TEXT_KEYS},
            **{key: ids for key in ENDS if (ids := getattr(config, key, None)) is not None},
            "attention_dropout": text.attention_dropout,
            "rope_theta": text.rope_parameters["rope_theta"],
            "use_sliding_window": False,
            "torch_dtype": dtype,
            "add_moe": bool(ours),
            "moe_part": "-".join(part for part, name in _MOE_PARTS.items() if name in ours) or None,
            "mm_hidden_size": config.patch_embedding.get("patch_width", 1024),
            "mm_vision_tower": f"openai/eve-anyratio-res{geometry.max_size}-patch{geometry.patch_size}",
        }

    def write_preprocessor(self, config: EveConfig) -> dict[str, Any]:
        geometry = config.image_geometry
        return {
            "feature_extractor_type": "CLIPFeatureExtractor",
            **_FIXED,
            "resample": 3,
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
            "max_size": geometry.max_size,
            "patch_stride": geometry.patch_size,
            "dense_stride": geometry.pool_size,
        }

    def _check(self, config: EveConfig) -> None:
        text, geometry = config.text_config, config.image_geometry
        rope = getattr(text, "rope_parameters", None) or {}
        self.check(
            (
                ("text_config.model_type", text.model_type, ("qwen2",)),
                ("text_config.use_sliding_window", getattr(text, "use_sliding_window", False), (False,)),
                ("text_config.head_dim", getattr(text, "head_dim", None), (None, text.hidden_size // text.num_attention_heads)),
                ("text_config.rope_parameters.rope_type", rope.get("rope_type"), ("default",)),
                ("decoder_kind.name", config.decoder_kind["name"], ("experts", "dense")),
                ("patch_embedding.name", config.patch_embedding["name"], ("eve_v2",)),
                ("image_attention.name", config.image_attention["name"], ("causal",)),
                ("positions.name", config.positions["name"], ("sequential",)),
                ("projector.name", config.projector["name"], ("identity",)),
                ("geometry.name", config.geometry["name"], ("eve_v2",)),
                ("geometry.class_token", geometry.class_token, (True,)),
                ("geometry.split_token", geometry.split_token, (True,)),
                ("aligner", config.aligner, (None,)),
            )
        )


def _read_decoder_kind(path: Path, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``add_moe`` and ``moe_part`` say of the decoder."""
    if not theirs.get("add_moe"):
        return {"name": "dense"}
    written = theirs.get("moe_part")
    found = written.split("-") if isinstance(written, str) else []
    if not found or not {*found} <= {*_MOE_PARTS} or len({*found}) < len(found):
        raise CheckpointError(f"{path}: moe_part is {written!r}, not some of {', '.join(_MOE_PARTS)} joined by '-'")
    return {"name": "experts", "parts": [ours for part, ours in _MOE_PARTS.items() if part in found]}
