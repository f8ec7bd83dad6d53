"""The official EVE v2 numbers (see tests/data/eve_v2/README.md) in the batch format of lit_eve."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from lit_eve.models.checkpoints.official import EveV2Layout
from lit_eve.processing import EveProcessor

ROOT = Path(__file__).parents[1] / "data" / "eve_v2"
WEIGHTS = ROOT / "tiny" / "weights"
TOKENIZER = ROOT / "text" / "tokenizer"
OFFICIAL_IMAGE_SLOT = -200
LAYOUT = EveV2Layout()
ROWS = {  # the images of each row
    "b1_image": [["wide"]],
    "b1_text": [[]],
    "b4_mixed": [["wide"], [], ["square", "extreme"], ["tall"]],
    "b3_plain": [["extreme"], [], ["square"]],
}


@cache
def results() -> dict:
    return json.loads((ROOT / "tiny" / "results.json").read_text())


@cache
def tensors(name: str) -> dict[str, Tensor]:
    return load_file(ROOT / "tiny" / f"{name}.safetensors")


@cache
def official_weights() -> dict[str, Tensor]:
    return load_file(WEIGHTS / "model.safetensors")


def image(name: str) -> str:
    return str(ROOT / "tiny" / "images" / f"{name}.png")


def batch(name: str, processor: EveProcessor) -> dict[str, Tensor]:
    """The reference batch from the image files on, right-padded as upstream does."""
    given, rows = tensors(name), []
    for row, images in enumerate(ROWS[name]):
        real = given["attention_mask_in"][row].bool()
        counts = iter([int(processor.geometry.num_tokens_of_grid(grid)) for grid in grids(images, processor)])
        ids, labels = [], []
        for id, label in zip(given["input_ids"][row][real].tolist(), given["labels_in"][row][real].tolist(), strict=True):
            count = next(counts) if id == OFFICIAL_IMAGE_SLOT else 1
            ids += [processor.image_token_id if id == OFFICIAL_IMAGE_SLOT else id] * count
            labels += [label] * count
        assert next(counts, None) is None
        rows.append((torch.tensor(ids), torch.tensor(labels)))
    length = max(len(ids) for ids, _ in rows)
    pad = lambda x, value: torch.nn.functional.pad(x, (0, length - len(x)), value=value)  # noqa: E731
    images = [image(one) for images in ROWS[name] for one in images]
    return {
        "input_ids": torch.stack([pad(ids, 0) for ids, _ in rows]),
        "labels": torch.stack([pad(labels, -100) for _, labels in rows]),
        "attention_mask": torch.stack([pad(torch.ones_like(ids), 0) for ids, _ in rows]),
        **(dict(processor(images=images)) if images else {}),
    }


def grids(images: list[str], processor: EveProcessor) -> list[Tensor]:
    return list(processor(images=[image(one) for one in images])["image_grid_hw"]) if images else []
