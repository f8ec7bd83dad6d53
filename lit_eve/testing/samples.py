"""Samples of random words and pixels with photos at chosen places, and batches of them: padded, and packed into rows.

Notation: B rows, T tokens per row, S samples, N images (views of photos), P patches, p side of a patch, C teacher image size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_eve.losses import target_positions_of
from lit_eve.models import EveForConditionalGeneration

Sample = dict[str, Tensor]
"""One sample: ``input_ids`` and ``labels`` (T,), ``pixel_values`` (P, 3 * p * p) uint8, ``image_grid_hw`` (N, 2),
``image_seeds`` (N,), and with a teacher ``teacher_pixel_values`` (N, 3, C, C) uint8."""
Pieces = Sequence[int | tuple[int, int]]
"""What a sample is made of: so many words, or a photo of (width, height) in tokens, which the geometry then resizes."""

LAYOUTS: dict[str, Pieces] = {
    "several images": (3, (2, 1), 4, (1, 2), 2, (2, 3), 3),
    "an image in front": ((3, 2), 6),
    "text alone": (7,),
    "images that touch": (2, (1, 2), (2, 2), 5),
    "an image at the end": (4, (2, 3)),
}
"""What a sample can be."""

_IMAGES = ("pixel_values", "image_grid_hw", "image_seeds", "teacher_pixel_values")
_FIRST_WORD = 3  # in front of it stand the ids of special tokens


def make_samples(model: EveForConditionalGeneration, layouts: Sequence[Pieces] = tuple(LAYOUTS.values())) -> list[Sample]:
    """A random sample of each layout."""
    return [make_sample(model, pieces, seed) for seed, pieces in enumerate(layouts)]


def make_sample(model: EveForConditionalGeneration, pieces: Pieces, seed: int = 0) -> Sample:
    """A random sample; half of its words and the last of them are supervised."""
    photos = [piece for piece in pieces if isinstance(piece, tuple)]
    size = model.geometry.token_size
    views = [model.geometry.patch_grids(width * size, height * size, len(photos)) for width, height in photos]
    views = iter(views)
    return sample_of(model, [piece if isinstance(piece, int) else next(views) for piece in pieces], seed)


def sample_of(model: EveForConditionalGeneration, pieces: Sequence[int | list[tuple[int, int]]], seed: int = 0) -> Sample:
    """:func:`make_sample` of so many words, and of images with these (rows, columns) of patches."""
    generator, geometry = torch.Generator().manual_seed(seed), model.geometry
    words, slot = model.config.text_config.vocab_size, model.config.image_token_id
    grids = torch.tensor([grid for piece in pieces if not isinstance(piece, int) for grid in piece], dtype=torch.long)
    grids = grids.reshape(-1, 2)  # (N, 2)
    slots, ids = iter(geometry.num_tokens_of_grid(grids).tolist()), []
    for piece in pieces:
        if isinstance(piece, int):
            drawn = torch.randint(_FIRST_WORD, words - 1, (piece,), generator=generator)
            ids.append(drawn + (drawn >= slot))  # the id of a slot may lie among the words
        else:
            ids += [torch.full((next(slots),), slot) for _ in piece]
    ids = torch.cat(ids)  # (T,)
    is_word = ids != slot
    supervised = (torch.rand(len(ids), generator=generator) < 0.5) & is_word
    supervised[is_word.nonzero()[-1]] = True
    supervised[0] = False
    pixels = torch.randint(0, 256, (int(grids.prod(1).sum()), geometry.patch_dim), generator=generator)  # (P, 3 * p * p)
    sample = {
        "input_ids": ids,
        "labels": torch.where(supervised, ids, -100),
        "pixel_values": pixels.to(torch.uint8),
        "image_grid_hw": grids,
        "image_seeds": torch.randint(0, 2**31, (len(grids),), generator=generator),
    }
    if model.teacher is not None:
        side = model.teacher.grid.image_size
        canvas = torch.randint(0, 256, (len(grids), 3, side, side), generator=generator)  # (N, 3, C, C)
        sample["teacher_pixel_values"] = canvas.to(torch.uint8)
    return sample


def image_of_token(model: EveForConditionalGeneration, sample: Sample) -> Tensor:
    """(T,) int64: the number of each token's image in its sample, -1 at words."""
    slots = model.geometry.num_tokens_of_grid(sample["image_grid_hw"])  # (N,)
    image = torch.full_like(sample["input_ids"], -1)
    image[sample["input_ids"] == model.config.image_token_id] = torch.repeat_interleave(torch.arange(len(slots)), slots)
    return image


def padded(samples: Sequence[Sample], side: str = "right") -> dict[str, Tensor]:
    """A batch with a row (B = S) of each sample, and padding on one side."""
    length = max(len(sample["input_ids"]) for sample in samples)

    def pad(x: Tensor, value: int) -> Tensor:
        missing = length - len(x)
        return F.pad(x, (0, missing) if side == "right" else (missing, 0), value=value)

    return {
        "input_ids": torch.stack([pad(sample["input_ids"], 0) for sample in samples]),
        "labels": torch.stack([pad(sample["labels"], -100) for sample in samples]),
        "attention_mask": torch.stack([pad(torch.ones_like(sample["input_ids"]), 0) for sample in samples]),
        **_images(samples),
    }


def packed(rows: Sequence[Sequence[Sample]]) -> dict[str, Tensor]:
    """Each inner list becomes one row; the tail of a shorter row is a sample of its own, without labels."""
    length = max(sum(len(sample["input_ids"]) for sample in row) for row in rows)
    ids, labels, positions, lengths = [], [], [], []
    for row in rows:
        tail = length - sum(len(sample["input_ids"]) for sample in row)
        padding = {"input_ids": torch.zeros(tail, dtype=torch.long), "labels": torch.full((tail,), -100)}
        parts = [*row, padding] if tail else row
        ids.append(torch.cat([part["input_ids"] for part in parts]))
        labels.append(torch.cat([part["labels"] for part in parts]))
        positions.append(torch.cat([torch.arange(len(part["input_ids"])) for part in parts]))
        lengths += [len(part["input_ids"]) for part in parts]
    batch = {"input_ids": torch.stack(ids), "labels": torch.stack(labels), "position_ids": torch.stack(positions)}
    batch["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).int()
    batch["max_seqlen"] = max(lengths)
    batch["target_positions"] = target_positions_of(batch["labels"])
    return batch | _images([sample for row in rows for sample in row])


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an answer is computed from."""
    training = ("labels", "target_positions", "image_seeds", "teacher_pixel_values")
    return {key: value for key, value in batch.items() if key not in training}


def _images(samples: Sequence[Sample]) -> dict[str, Tensor]:
    return {key: torch.cat([sample[key] for sample in samples]) for key in _IMAGES if key in samples[0]}
