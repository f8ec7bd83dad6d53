"""Tiny random models, and batches of random text with images at random places."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModel

from lit_eve.losses import FrozenTeacher
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.testing.samples import packed, padded

__all__ = ["packed", "padded"]  # tests take them from here, beside what is below

VOCAB = 61
GEOMETRY = {"image_size": 64, "patch_size": 4, "pool_size": 2, "cells": 8}
HD_GEOMETRY = {"image_size": 128, "patch_size": 4, "pool_size": 2, "cells": 8}
COMMON = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
DECODERS = {
    "llama": {"model_type": "llama", **COMMON},
    "llama_gqa": {"model_type": "llama", **COMMON, "num_key_value_heads": 2},
    "qwen2_tied": {"model_type": "qwen2", **COMMON, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **COMMON, "num_key_value_heads": 2, "head_dim": 16},
    "persimmon": {"model_type": "persimmon", **COMMON},
}


def config(decoder: str = "llama", **kwargs) -> EveConfig:
    fields = {"geometry": GEOMETRY, "patch_embedding": {"name": "eve_v1", "width": 16, "num_heads": 4}} | kwargs
    return EveConfig(text_config=dict(DECODERS[decoder]), **fields)


def teacher(width: int = 32) -> FrozenTeacher:
    vision = CLIPVisionConfig(
        hidden_size=width, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=64, patch_size=8
    )
    return FrozenTeacher(CLIPVisionModel(vision))


def model(
    decoder: str = "llama", with_teacher: bool = False, seed: int = 0, layer_interval: int = 2, **kwargs
) -> EveForConditionalGeneration:
    torch.manual_seed(seed)
    model = EveForConditionalGeneration(config(decoder, **kwargs))
    for parameter in model.parameters():  # larger than the usual initialisation, so that differences show
        torch.nn.init.normal_(parameter, std=0.15)
    if with_teacher:
        model.attach_teacher(teacher(), {"name": "layerwise", "layer_interval": layer_interval, "num_heads": 4})
    return model


def samples(model: EveForConditionalGeneration, images: list[int], seed: int = 0) -> list[dict[str, Tensor]]:
    """One sample per entry, with so many images of random shapes at random places; half of the text is supervised."""
    generator, geometry, out = torch.Generator().manual_seed(seed), model.geometry, []
    cell, side = geometry.cell_size // geometry.patch_size, geometry.cells
    draw = lambda low, high, *size: torch.randint(low, high, size, generator=generator)  # noqa: E731
    for count in images:
        grids = draw(1, side + 1, count, 2) * cell
        pieces = [draw(3, VOCAB, 5)]
        for grid in grids:
            slots = int(geometry.num_tokens_of_grid(grid))
            pieces += [torch.full((slots,), model.config.image_token_id), draw(3, VOCAB, int(draw(3, 9, 1)))]
        ids = torch.cat(pieces)
        supervised = (torch.rand(len(ids), generator=generator) < 0.5) & (ids != model.config.image_token_id)
        supervised[0] = False
        out.append(
            {
                "input_ids": ids,
                "labels": torch.where(supervised, ids, -100),
                "pixel_values": draw(0, 256, int(grids.prod(1).sum()), geometry.patch_dim).to(torch.uint8),
                "image_grid_hw": grids,
                "teacher_pixel_values": draw(0, 256, count, 3, 64, 64).to(torch.uint8),
            }
        )
    return out


def gradients(model: EveForConditionalGeneration, *batches: dict[str, Tensor], **kwargs) -> tuple[list, dict[str, Tensor]]:
    """Outputs of the batches, and the gradients of the sum of their losses by name."""
    model.zero_grad()
    outputs = [model(**batch, **kwargs) for batch in batches]
    sum(output.loss for output in outputs).backward()
    return outputs, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def assert_packed_like_alone(
    model: EveForConditionalGeneration, rows: list[dict[str, Tensor]], implementation: str, checkpointing: bool
) -> None:
    """Losses and gradients of samples in packed rows are those of the same samples, one by one, in eager attention."""
    images = sum(len(row["image_grid_hw"]) for row in rows)
    counts = {"num_targets": sum(int((row["labels"] != -100).sum()) for row in rows), "num_images": images}
    model.language_model.config._attn_implementation = "eager"
    alone, expected = gradients(model, *[padded([row]) for row in rows], **counts)
    model.language_model.config._attn_implementation = implementation
    if checkpointing:
        model.recompute_blocks()
    together, got = gradients(model, packed([rows[:2], rows[2:]]), **counts)
    for loss in ("loss", "language_loss", "alignment_loss"):
        assert_close(getattr(together[0], loss), sum(getattr(output, loss) for output in alone), rtol=1e-5, atol=1e-6)
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(got[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")
