"""The official EVE v1 numbers (see tests/data/eve_v1/README.md) in the batch format of lit_eve."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_eve.models.checkpoints.official import EveV1Layout

ROOT = Path(__file__).parents[1] / "data" / "eve_v1"
WEIGHTS = ROOT / "a672" / "weights"
TOKENIZER = ROOT / "tokenizer"
OFFICIAL_IMAGE_SLOT = -200
LAYOUT = EveV1Layout()
SAMPLES = {
    "b1_image": ["wide"],
    "b1_text": [None],
    "b4_mixed": ["wide", None, "tall", "extreme"],
    "b4_plain": ["wide", "tall", "square", "extreme"],
    "b2_equal": ["square", "square"],
}


@cache
def results() -> dict:
    return json.loads((ROOT / "a672" / "results.json").read_text())


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(ROOT / "a672" / f"{name}.safetensors")


@cache
def official_weights() -> dict[str, Tensor]:
    return load_file(WEIGHTS / "model.safetensors")


def patches_of(image: str) -> tuple[Tensor, Tensor]:
    """The official uint8 pixels of an image, cut into patches by window: ((P, 588), (rows, cols))."""
    index = ["wide", "tall", "square", "extreme"].index(image)
    pixels, mask = tensors("pixels")["u8"][index], tensors("pixels")["mask"][index, 0].bool()
    rows, columns = mask.any(1), mask.any(0)
    pixels = pixels[:, rows][:, :, columns]
    patches = rearrange(pixels, "c (h y p) (w x q) -> (h w y x) (c p q)", p=14, q=14, y=2, x=2)
    return patches, torch.tensor([pixels.shape[1] // 14, pixels.shape[2] // 14])


def image_fields(images: list[str]) -> dict[str, Tensor]:
    if not images:
        return {
            "pixel_values": torch.zeros(0, 588, dtype=torch.uint8),
            "image_grid_hw": torch.zeros(0, 2, dtype=torch.long),
            "teacher_pixel_values": torch.zeros(0, 3, 84, 84, dtype=torch.uint8),
        }
    patches, grids = zip(*map(patches_of, images), strict=True)
    order = [["wide", "tall", "square", "extreme"].index(image) for image in images]
    return {
        "pixel_values": torch.cat(patches),
        "image_grid_hw": torch.stack(grids),
        "teacher_pixel_values": tensors("pixels")["clip_u8"][order],
    }


def expand(ids: Tensor, labels: Tensor, num_tokens: int, image_token_id: int) -> tuple[Tensor, Tensor]:
    """Replace the single official image slot by as many as the image has tokens."""
    slot = (ids == OFFICIAL_IMAGE_SLOT).nonzero().flatten()
    if len(slot) == 0:
        return ids, labels
    at = int(slot)
    ids = torch.cat([ids[:at], ids.new_full((num_tokens,), image_token_id), ids[at + 1 :]])
    labels = torch.cat([labels[:at], labels.new_full((num_tokens,), -100), labels[at + 1 :]])
    return ids, labels


def samples(name: str, geometry, image_token_id: int) -> list[tuple[Tensor, Tensor]]:
    """Expanded (input_ids, labels) of each sample of a reference batch, without padding."""
    batch, out = tensors(name), []
    for row, image in enumerate(SAMPLES[name]):
        real = batch["attention_mask_in"][row].bool()
        count = int(geometry.num_tokens_of_grid(patches_of(image)[1])) if image else 0
        out.append(expand(batch["input_ids"][row][real], batch["labels_in"][row][real], count, image_token_id))
    return out


def padded_batch(name: str, geometry, image_token_id: int) -> dict[str, Tensor]:
    """The reference batch, right-padded as upstream does."""
    rows = samples(name, geometry, image_token_id)
    length = tensors(name)["attention_mask"].shape[1]
    pad = lambda x, value: torch.nn.functional.pad(x, (0, length - len(x)), value=value)  # noqa: E731
    return {
        "input_ids": torch.stack([pad(ids, 0) for ids, _ in rows]),
        "labels": torch.stack([pad(labels, -100) for _, labels in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(ids), 0) for ids, _ in rows]),
        **image_fields([image for image in SAMPLES[name] if image]),
    }


def packed_batch(name: str, geometry, image_token_id: int) -> dict[str, Tensor]:
    """The same samples in one row without padding."""
    rows = samples(name, geometry, image_token_id)
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    labels = [torch.cat([torch.tensor([-100]), labels[1:]]) for _, labels in rows]
    return {
        "input_ids": torch.cat([ids for ids, _ in rows])[None],
        "labels": torch.cat(labels)[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
        "cu_seqlens": torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int(),
        **image_fields([image for image in SAMPLES[name] if image]),
    }


def split(folder: Path, kind: str, parts: int, index: bool) -> None:
    """Replace the single safetensors file of a checkpoint by several, of either kind."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names, weight_map = list(weights), {}
    for part in range(parts):
        file = f"{stem}-{part + 1:05d}-of-{parts:05d}.{suffix}"
        chosen = {name: weights[name].clone() for name in names[part::parts]}
        weight_map |= dict.fromkeys(chosen, file)
        save_file(chosen, folder / file) if kind == "safetensors" else torch.save(chosen, folder / file)
    if index:
        content = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": weight_map}
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(content))
