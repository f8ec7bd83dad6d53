"""The official NEO numbers (see tests/data/neo/README.md) in the batch format of lit_eve."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor

from lit_eve.losses import target_positions_of
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.processing import load_image, patchify
from lit_eve.processing.geometries import NativeGeometry

ROOT = Path(__file__).parents[1] / "data" / "neo"
GEOMETRY = NativeGeometry(min_pixels=4096, max_pixels=16384, shared=True)
IMAGES = {  # of the samples of each batch
    "b_image": [["big"]],
    "b_text": [[]],
    "b_two": [["wide", "small"]],
    "b_pack": [["tall"], ["small"]],
    "b_pack3": [[], ["wide", "small"], ["big"]],
}
_EMBEDDING = "vision_model.embeddings."
_OURS = {"patch_embedding": "patch_embedding.patch_projection", "dense_embedding": "patch_embedding.window_projection"}
# Of the config, what transformers' Qwen3 knows.
_TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_MORE = ("head_dim", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "attention_bias", "hidden_act")


@cache
def results() -> dict:
    return json.loads((ROOT / "tiny" / "results.json").read_text())


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(ROOT / f"{name}.safetensors")


def config() -> EveConfig:
    theirs = json.loads((ROOT / "tiny/weights/config.json").read_text())
    text, vision = theirs["llm_config"], theirs["vision_config"]
    return EveConfig(
        text_config={
            "model_type": "qwen3",
            **{key: text[key] for key in (*_TEXT, *_MORE)},
            "rope_parameters": {"rope_type": "default", "rope_theta": text["rope_theta"]},
        },
        decoder_kind={"name": "pre_buffer", "layers": text["extra_num_layers"]},
        positions={"name": "neo", "theta_hw": text["rope_theta_hw"]},
        image_attention={"name": "bidirectional"},
        patch_embedding={"name": "neo", "patch_width": vision["hidden_size"], "theta": vision["rope_theta_vision"]},
        projector={"name": "identity"},
        geometry=GEOMETRY.to_dict(),
        image_token_id=theirs["img_context_token_id"],
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    )


def our_name(key: str) -> str:
    """Ours of an official weight."""
    if not key.startswith(_EMBEDDING):
        return key
    module, _, weight = key.removeprefix(_EMBEDDING).rpartition(".")
    return f"{_OURS[module]}.{weight}"


def our_value(key: str, value: Tensor) -> Tensor:
    """An official weight in our shape."""
    if value.ndim < 4:
        return value
    return value.flatten(1) if "patch_embedding" in key else rearrange(value, "d e i j -> d (i j e)")


def model() -> EveForConditionalGeneration:
    made = EveForConditionalGeneration(config())
    weights = {our_name(key): our_value(key, value) for key, value in tensors("tiny/weights/model").items()}
    made.load_state_dict(weights)
    return made


def images(names: list[list[str]]) -> dict[str, Tensor]:
    """Patches of the images of each sample, from the files on."""
    made = [patchify(load_image(ROOT / f"tiny/images/{name}.png"), GEOMETRY) for sample in names for name in sample]
    grids = torch.tensor([grid for _, found in made for grid in found], dtype=torch.long).reshape(-1, 2)
    return {
        "pixel_values": torch.cat([patches for patches, _ in made]) if made else torch.zeros(0, 768, dtype=torch.uint8),
        "image_grid_hw": grids,
    }


def batch(name: str) -> dict[str, Tensor]:
    """A packed row."""
    given = tensors(f"tiny/{name}")
    labels, boundaries = given["labels"][None], given["seq_boundaries"].int()
    return {
        "input_ids": given["input_ids"],
        "labels": labels,
        "cu_seqlens": boundaries,
        "max_seqlen": int(boundaries.diff().max()),
        "position_ids": torch.cat([torch.arange(int(length)) for length in boundaries.diff()])[None],
        "target_positions": target_positions_of(labels),
        **images(IMAGES[name]),
    }
