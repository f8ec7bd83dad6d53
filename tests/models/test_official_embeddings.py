"""Patch embeddings with official weights give the official tokens, from the image's file on where its pixels are known."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from lit_eve.models import PATCH_EMBEDDINGS, PatchEmbedding
from lit_eve.processing import CLIP_MEAN, CLIP_STD, EveV2Geometry, ImageGeometry, load_image, patchify
from lit_eve.processing.geometries import NativeGeometry, SquareGeometry, TilesGeometry, TokenBudgetGeometry
from lit_eve.processing.images import normalize_pixels

DATA = Path(__file__).parents[1] / "data"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
WINDOWS = "d e i j -> d (i j e)"  # a convolution over windows, as a matrix over the patches of a window


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def build(spec: dict, geometry: ImageGeometry, hidden_size: int, weights: dict[str, Tensor]) -> PatchEmbedding:
    made = PATCH_EMBEDDINGS.build(spec, geometry=geometry, hidden_size=hidden_size)
    made.load_state_dict(weights)
    return made.eval()


@torch.no_grad()
def embed(embedding: PatchEmbedding, patches: Tensor, grids: list[tuple[int, int]], pool: int, mean_std: tuple) -> Tensor:
    """Tokens of uint8 patches whose grids, in patches, are given; with class and split tokens where there are some."""
    normalised = normalize_pixels(patches.unflatten(1, (3, -1)), *mean_std, torch.float32).flatten(1)
    token_grids = torch.tensor(grids) // pool
    of_image = torch.repeat_interleave(torch.arange(len(grids)), token_grids.prod(1))
    extra = {"grid_hw": token_grids} if "grid_hw" in embedding.forward.__code__.co_varnames else {}
    tokens, classes, split = embedding(normalised, of_image, len(grids), **extra)
    if classes is None and split is None:
        return tokens
    ((rows, columns),) = token_grids.tolist()
    ended = torch.cat([tokens.view(rows, columns, -1), split.expand(rows, 1, -1)], 1).flatten(0, 1)
    return torch.cat([classes, ended])


# ---- EVE v2

RULES = {"train": "train", "infer": "inference"}
eve_v2_cases = pytest.mark.parametrize(
    ("image", "rule"), [(image, rule) for image in ("wide", "square", "tall", "extreme") for rule in RULES]
)


def eve_v2_patches(image: str, rule: str) -> tuple[Tensor, list[tuple[int, int]]]:
    return patchify(load_image(DATA / f"eve_v2/tiny/images/{image}.png"), EveV2Geometry(max_size=160, rule=RULES[rule]))


@eve_v2_cases
def test_pixels_of_eve_v2(image, rule):
    patches, [(rows, columns)] = eve_v2_patches(image, rule)
    form = "(h w y x) (c p q) -> c (h y p) (w x q)"
    pixels = rearrange(patches, form, h=rows // 2, w=columns // 2, y=2, x=2, c=3, p=16, q=16)
    assert torch.equal(pixels, tensors("eve_v2/tiny/pixels")[f"{image}.{rule}.u8"])


@eve_v2_cases
def test_tokens_of_eve_v2(image, rule):
    prefix, weights = "model.vision_tower.", tensors("eve_v2/tiny/weights/model")
    embedding = build(
        {"name": "eve_v2", "patch_width": 48},
        EveV2Geometry(max_size=160),
        64,
        {
            "class_embedding": weights[f"{prefix}class_embedding"],
            "split_embedding": weights[f"{prefix}split_embedding"],
            "patch_projection.weight": weights[f"{prefix}patch_embedding.0.weight"].flatten(1),
            "patch_projection.bias": weights[f"{prefix}patch_embedding.0.bias"],
            "window_projection.weight": rearrange(weights[f"{prefix}patch_embedding.2.weight"], WINDOWS),
            "window_projection.bias": weights[f"{prefix}patch_embedding.2.bias"],
        },
    )
    found = embed(embedding, *eve_v2_patches(image, rule), 2, (CLIP_MEAN, CLIP_STD))
    assert_close(found, tensors("eve_v2/tiny/patch_embeds")[f"{image}.{rule}"], rtol=0, atol=1e-5)


# ---- NEO


def test_tokens_of_neo():
    prefix, weights = "vision_model.embeddings.", tensors("neo/tiny/weights/model")
    geometry = NativeGeometry(min_pixels=4096, max_pixels=16384)
    embedding = build(
        {"name": "neo", "patch_width": 32},
        geometry,
        64,
        {
            "patch_projection.weight": weights[f"{prefix}patch_embedding.weight"].flatten(1),
            "patch_projection.bias": weights[f"{prefix}patch_embedding.bias"],
            "window_projection.weight": rearrange(weights[f"{prefix}dense_embedding.weight"], WINDOWS),
            "window_projection.bias": weights[f"{prefix}dense_embedding.bias"],
        },
    )
    names = ("small", "wide", "tall", "big")
    patches, grids = zip(*(patchify(load_image(DATA / f"neo/tiny/images/{name}.png"), geometry) for name in names), strict=True)
    together = embed(embedding, torch.cat(patches), [grid for (grid,) in grids], 2, IMAGENET)
    expected = torch.cat([tensors("neo/tiny/patch_embeds")[name] for name in names])
    assert_close(together, expected, rtol=0, atol=1e-5)


# ---- Mono-InternVL


@pytest.mark.parametrize("image", ["square", "wide", "tall"])
def test_tokens_of_mono_internvl(image):
    weights = tensors("mono_internvl/weights/model")
    prefix, geometry = "vision_model.embeddings.", TilesGeometry(image_size=56, max_tiles=4)
    embedding = build(
        {"name": "mono_internvl", "patch_width": 32, "positions": 4},
        geometry,
        64,
        {
            "patch_projection.weight": weights[f"{prefix}patch_embedding.weight"].flatten(1),
            "patch_projection.bias": weights[f"{prefix}patch_embedding.bias"],
            "positions.table": weights[f"{prefix}position_embedding"][0, 1:].view(4, 4, -1),
            **{key.replace("mlp1", "mlp"): value for key, value in weights.items() if key.startswith("mlp1.")},
        },
    )
    tiles = tensors("mono_internvl/pixels")[f"{image}.tiles_u8"]  # made by an older Pillow: test_geometry.py
    patches = rearrange(tiles, "n (h y p) (w x q) c -> (n h w y x) (c p q)", y=2, x=2, p=14, q=14)
    found = embed(embedding, patches, [(4, 4)] * len(tiles), 2, IMAGENET)
    assert_close(found, tensors("mono_internvl/vision")[f"{image}.vision_embeds"].flatten(0, 1), rtol=0, atol=1e-5)


# ---- VoRA


@cache
def vora() -> PatchEmbedding:
    prefix, weights = "vision_embedding.", tensors("vora/weights/model")
    return build(
        {"name": "vora", "patch_width": 48, "positions": 4},
        SquareGeometry(image_size=56, background=(0, 0, 0)),
        64,
        {
            "patch_projection.weight": weights[f"{prefix}patchifier.proj.weight"].flatten(1),
            "patch_projection.bias": weights[f"{prefix}patchifier.proj.bias"],
            "norm.weight": weights[f"{prefix}patchifier.norm.weight"],
            "positions.table": weights[f"{prefix}pos_embed"].view(4, 4, -1),
            "output_projection.weight": weights[f"{prefix}out_proj.weight"],
        },
    )


@torch.no_grad()
def test_tokens_of_vora():
    frames = tensors("vora/b_image")["frames"]  # (1, 3, 56, 56), normalised
    patches = rearrange(frames, "n c (h p) (w q) -> (n h w) (c p q)", p=14, q=14)
    tokens, _, _ = vora()(patches, torch.zeros(16, dtype=torch.long), 1, torch.tensor([[4, 4]]))
    assert_close(tokens, tensors("vora/b_image")["vision_embeds"][0], rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", ["56x56", "84x70", "28x56", "42x28"])
def test_positions_of_vora_at_other_sizes(size):
    frames = tensors("vora/vision_sizes")[f"{size}.frames"]
    patches = rearrange(frames, "n c (h p) (w q) -> (n h w) (c p q)", p=14, q=14)
    grid = torch.tensor([[frames.shape[2] // 14, frames.shape[3] // 14]])
    tokens, _, _ = vora()(patches, torch.zeros(len(patches), dtype=torch.long), 1, grid)
    expected = tensors("vora/vision_sizes")[f"{size}.vision_embeds"][0]
    if size in ("56x56", "84x70"):
        assert_close(tokens, expected, rtol=0, atol=1e-5)
    else:  # of a smaller image, upstream takes the first positions of the table, as if it were a row of it
        assert (tokens - expected).abs().max() > 0.01


# ---- Gemma 4 unified, against transformers


@torch.no_grad()
def test_tokens_of_gemma_4_unified():
    from transformers.models.gemma4_unified.configuration_gemma4_unified import (
        Gemma4UnifiedTextConfig,
        Gemma4UnifiedVisionConfig,
    )
    from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedVisionEmbedder

    torch.manual_seed(0)
    sizes = {"patch_size": 4, "pooling_kernel_size": 3, "mm_embed_dim": 32, "mm_posemb_size": 20, "output_proj_dims": 32}
    theirs = Gemma4UnifiedVisionEmbedder(Gemma4UnifiedVisionConfig(**sizes), Gemma4UnifiedTextConfig(hidden_size=48))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    order = rearrange(torch.arange(3 * 12 * 12), "(y x c) -> (c y x)", y=12, x=12)  # their pixels have the channel last
    embedding = build(
        {"name": "gemma4_unified", "width": 32, "positions": 20},
        TokenBudgetGeometry(patch_size=12, tokens=20),
        48,
        {
            "pixel_norm.weight": theirs.patch_ln1.weight[order],
            "pixel_norm.bias": theirs.patch_ln1.bias[order],
            "patch_projection.weight": theirs.patch_dense.weight[:, order],
            "patch_projection.bias": theirs.patch_dense.bias,
            "patch_norm.weight": theirs.patch_ln2.weight,
            "patch_norm.bias": theirs.patch_ln2.bias,
            "places.columns": theirs.pos_embedding[:, 0],
            "places.rows": theirs.pos_embedding[:, 1],
            "place_norm.weight": theirs.pos_norm.weight,
            "place_norm.bias": theirs.pos_norm.bias,
            "output_projection.weight": theirs.multimodal_embedder.embedding_projection.weight,
        },
    )
    photo = Image.effect_noise((70, 40), 80).convert("RGB")
    patches, [(rows, columns)] = patchify(photo, TokenBudgetGeometry(patch_size=12, tokens=20))
    pixels = torch.empty_like(patches)
    pixels[:, order.argsort()] = patches  # (y, x, c) from (c, y, x)
    theirs_pixels = torch.zeros(len(patches), 3 * 12 * 12, dtype=torch.uint8)
    theirs_pixels[:, order] = patches
    x, y = torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy")
    positions = torch.stack([x, y], -1).view(1, -1, 2)
    expected = theirs(theirs_pixels[None] / 255, positions).pooler_output[0]
    found = embed(embedding, patches, [(rows, columns)], 1, ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    assert_close(found, expected, rtol=0, atol=1e-4)
