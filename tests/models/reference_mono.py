"""The official Mono-InternVL numbers (see tests/data/mono_internvl/README.md) in the batch format of lit_eve."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor
from transformers import AddedToken, LlamaTokenizer, PreTrainedTokenizerBase

from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.processing import EveProcessor, Sample

ROOT = Path(__file__).parents[1] / "data" / "mono_internvl"
TILES = {
    **{"name": "tiles", "image_size": 56, "patch_size": 14, "pool_size": 2, "max_tiles": 4},
    **{"class_token": False, "split_token": False},
}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TEMPLATE = {"name": "chatml", "system": "Be short.", "after_turn": "", "trim": True}
ROWS = {"b_image": ["image"], "b_text": ["text"], "b_two": ["two"], "b_mixed": ["two", "text", "image"]}
HEADS, KV_HEADS = 4, 2
NAMES = {  # official -> ours, within a layer
    "attention.wo": "self_attn.o_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward_ve.w1": "mlp.image.gate_proj",
    "feed_forward_ve.w2": "mlp.image.down_proj",
    "feed_forward_ve.w3": "mlp.image.up_proj",
}


@cache
def results() -> dict:
    return json.loads((ROOT / "results.json").read_text())


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(ROOT / f"{name}.safetensors")


@cache
def weights() -> dict[str, Tensor]:
    return load_file(ROOT / "weights" / "model.safetensors")


def tokenizer(dummy_prefix: bool = False) -> PreTrainedTokenizerBase:
    loaded = LlamaTokenizer.from_pretrained(ROOT / "text" / "tokenizer", add_prefix_space=dummy_prefix, add_bos_token=True)
    added = json.loads((ROOT / "text" / "preprocess.json").read_text())["added_tokens"]
    tokens = [AddedToken(token, normalized=False, special=True) for token in sorted(added, key=added.get)]
    loaded.add_tokens(tokens, special_tokens=True)
    assert {token: loaded.convert_tokens_to_ids(token) for token in added} == added
    return loaded


def processor(**kwargs) -> EveProcessor:
    settings = {
        "tokenizer": tokenizer(),
        "geometry": TILES,
        "template": TEMPLATE,
        "image_token": "<IMG_CONTEXT>",
        "around_images": {"before": "<img>", "after": "</img>"},
    }
    return EveProcessor(**settings | kwargs)


def model() -> EveForConditionalGeneration:
    config = EveConfig(
        text_config={
            **{"model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4},
            **{"num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 2048},
            **{"rms_norm_eps": 1e-5, "rope_theta": 1e6, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        },
        decoder_kind={"name": "experts", "parts": ["mlp"]},
        patch_embedding={"name": "mono_internvl", "patch_width": 32, "positions": 4},
        projector={"name": "identity"},
        geometry=TILES,
        image_mean=IMAGENET[0],
        image_std=IMAGENET[1],
        image_token_id=results()["token_ids"]["img_context"],
    )
    made = EveForConditionalGeneration(config)
    made.load_state_dict(from_official(weights()))
    return made


def from_official(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights, or their gradients, under our names; the class token, which is dropped, has none."""
    ours: dict[str, Tensor] = {}
    for name, value in given.items():
        if ".wqkv." in name:  # per head of keys: its heads of queries, the key, the value
            layer = name.removeprefix("language_model.model.layers.").split(".")[0]
            heads = rearrange(value, "(g n d) e -> n g d e", g=KV_HEADS, n=HEADS // KV_HEADS + 2)
            parts = {
                "q": rearrange(heads[:-2], "n g d e -> (g n d) e"),
                "k": heads[-2].flatten(0, 1),
                "v": heads[-1].flatten(0, 1),
            }
            prefix = f"language_model.model.layers.{layer}.self_attn"
            ours |= {f"{prefix}.{letter}_proj.weight": part for letter, part in parts.items()}
        elif name == "vision_model.embeddings.position_embedding":
            ours["patch_embedding.positions.table"] = value[0, 1:].view(4, 4, -1)
        elif name != "vision_model.embeddings.class_embedding":
            ours[_ours(name)] = value.flatten(1) if value.dim() == 4 else value
    return ours


def _ours(name: str) -> str:
    if name.startswith("language_model.model.layers."):
        *prefix, module = name.removesuffix(".weight").split(".", 4)
        return ".".join([*prefix, NAMES[module], "weight"])
    for theirs, ours in (
        ("language_model.model.tok_embeddings", "language_model.model.embed_tokens"),
        ("language_model.output", "language_model.lm_head"),
        ("vision_model.embeddings.patch_embedding", "patch_embedding.patch_projection"),
        ("mlp1", "patch_embedding.mlp"),
    ):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def image(name: str) -> str:
    return str(ROOT / "images" / f"{name.removesuffix('.png')}.png")


def pixels(names: list[str], most: int) -> dict[str, Tensor]:
    """Patches of official tiles, which an older Pillow made (tests/processing/test_geometry.py), at most so many of each."""
    key = {4: "tiles_u8", 2: "tiles_max2_u8"}[most]
    tiles = torch.cat([tensors("pixels")[f"{name.removesuffix('.png')}.{key}"] for name in names])
    patches = rearrange(tiles, "n (h y p) (w x q) c -> (n h w y x) (c p q)", y=2, x=2, p=14, q=14)
    return {"pixel_values": patches, "image_grid_hw": torch.tensor([[4, 4]] * len(tiles))}


def batch(name: str, processor: EveProcessor) -> dict[str, Tensor]:
    """The reference batch from its conversations on, right-padded."""
    rows = []
    for sample in ROWS[name]:
        given = results()["samples"][sample]
        names = [given["image"]] if isinstance(given.get("image"), str) else given.get("image", [])
        row = processor.encode_sample(Sample(sample, given["conversations"], [image(one) for one in names]))
        if names:
            made = pixels(names, 4 // len(names))
            assert torch.equal(row["image_grid_hw"], made["image_grid_hw"])
            row |= made
        rows.append(row)
    length = max(len(row["input_ids"]) for row in rows)
    pad = lambda x, value: torch.nn.functional.pad(x, (0, length - len(x)), value=value)  # noqa: E731
    return {
        "input_ids": torch.stack([pad(row["input_ids"], 0) for row in rows]),
        "labels": torch.stack([pad(row["labels"], -100) for row in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(row["input_ids"]), 0) for row in rows]),
        **{key: torch.cat([row[key] for row in rows]) for key in ("pixel_values", "image_grid_hw")},
    }
