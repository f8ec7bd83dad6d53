"""Samples with images at chosen places, and what their tokens may see, written down pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eve.models import EveForConditionalGeneration
from lit_eve.testing.samples import sample_of, without_labels

__all__ = ["without_labels"]  # taken from here, beside what is below

BIDIRECTIONAL = {"image_attention": {"name": "bidirectional"}}
# Text of so many tokens, images of so many cells: in front, at the end, side by side, alone, and none.
LAYOUTS = [[(1, 2), 4, (2, 1), 3], [5, (2, 2), (1, 3), 2], [3, (3, 1)], [7], [2, (1, 1), 1, (2, 2), (1, 1), 6]]


def sample(model: EveForConditionalGeneration, pieces: list, seed: int = 0) -> dict[str, Tensor]:
    """Random text of so many tokens, and random images of (rows, columns) cells; half of the text is supervised."""
    cell = getattr(model.geometry, "cell_size", model.geometry.token_size) // model.geometry.patch_size
    grids = lambda piece: [(piece[0] * cell, piece[1] * cell)]  # noqa: E731
    return sample_of(model, [grids(piece) if isinstance(piece, tuple) else piece for piece in pieces], seed)


def samples(model: EveForConditionalGeneration) -> list[dict[str, Tensor]]:
    """One of each layout."""
    return [sample(model, pieces, seed) for seed, pieces in enumerate(LAYOUTS)]


def numbers(model: EveForConditionalGeneration, one: dict[str, Tensor]) -> list[int]:
    """The image of each token, -1: text; by a loop."""
    slots = [
        image for image, grid in enumerate(one["image_grid_hw"]) for _ in range(int(model.geometry.num_tokens_of_grid(grid)))
    ]
    rest = iter(slots)
    return [next(rest) if token == model.config.image_token_id else -1 for token in one["input_ids"].tolist()]


def both_ways(images: list[int], window: int | None = None) -> Tensor:
    """(T, T) bool: what the tokens of one sample see if images are bidirectional."""
    size = len(images)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(size):
            back = key <= query and (window is None or query - key < window)
            mask[query, key] = back or (images[query] == images[key] != -1)
    return mask


def logits_under(model: EveForConditionalGeneration, one: dict[str, Tensor], masks: dict[str, Tensor] | Tensor) -> Tensor:
    """(T, V) of one sample: the decoder, with eager attention under masks (T, T) given to it from outside."""
    before = model.config.text_config._attn_implementation
    model.language_model.set_attn_implementation("eager")

    def additive(mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[None, None]

    mask = {kind: additive(mask) for kind, mask in masks.items()} if isinstance(masks, dict) else additive(masks)
    try:
        with torch.no_grad():
            embeds = model.embed_inputs(one["input_ids"][None], one["pixel_values"], one["image_grid_hw"])
            position_ids = torch.arange(embeds.shape[1])[None]
            states = model.get_decoder()(inputs_embeds=embeds, attention_mask=mask, position_ids=position_ids, use_cache=False)
            return model._head(states.last_hidden_state)[0]
    finally:
        model.language_model.set_attn_implementation(before)
