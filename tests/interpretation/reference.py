"""Plain ways to read an answer again, with nothing of lit_eve.interpretation but what `attend` returned."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_eve.interpretation import AnswerAttention
from lit_eve.models import EveForConditionalGeneration


def read_again(model: EveForConditionalGeneration, seen: AnswerAttention, pixels: Tensor | None = None, **kwargs):
    """A plain forward over the prompt and all that was written: its output, and the answer tokens' log-probabilities (A,)."""
    ids = torch.cat([seen.inputs["input_ids"], seen.token_ids[None]], 1)
    pixels = seen.inputs["pixel_values"] if pixels is None else pixels
    output = model(input_ids=ids, pixel_values=pixels, image_grid_hw=seen.inputs["image_grid_hw"], **kwargs)
    prompt = seen.inputs["input_ids"].shape[1]
    scores = [output.logits[0, prompt + step - 1].log_softmax(-1)[seen.token_ids[step]] for step in seen.steps]
    return output, torch.stack(scores)


def on_images(row: Tensor, seen: AnswerAttention, image_token_id: int) -> list[Tensor]:
    """Numbers per token (T,) to one map (H, W) per image: class token first, then rows that end with a split token."""
    slots = (seen.inputs["input_ids"][0] == image_token_id).nonzero().flatten().tolist()
    maps = []
    for rows, columns in (seen.inputs["image_grid_hw"] // 2).tolist():
        slots.pop(0)
        maps.append(torch.stack([torch.stack([row[slots.pop(0)] for _ in range(columns + 1)][:-1]) for _ in range(rows)]))
    assert not slots
    return maps
