"""Is a teacher a CLIP, and are all its weights there? Asked before data is read; the weights themselves are not."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.folders import read_json
from lit_eve.models.checkpoints.weights import read_file, weight_files

_TYPES = ("clip", "clip_vision_model")
_PREFIX = "vision_model."


def check_teacher(name: str) -> None:
    """Look at the files of a teacher's folder; a name on the hub is left to the download.

    Raises:
        CheckpointError: it is no CLIP, or files or weights of its vision half are missing, damaged or of another shape.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"model.teacher: {name} holds no config.json: it is no CLIP")
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in _TYPES:
        raise CheckpointError(
            f"model.teacher: {name} is of the type {kind!r}; a teacher must be a CLIP or its vision half ({', '.join(_TYPES)})"
        )
    try:
        found = {_bare(key): tuple(t.shape) for file in weight_files(folder) for key, t in read_file(file).items()}
    except CheckpointError as error:
        raise CheckpointError(f"model.teacher: {error}") from error
    with torch.device("meta"):
        needed = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder)).state_dict()
    for key, tensor in needed.items():
        if (shape := found.get(_bare(key))) != tuple(tensor.shape):
            what = f"has {key} of the shape {shape}, where its config.json says {tuple(tensor.shape)}"
            raise CheckpointError(f"model.teacher: {name} " + (f"lacks {key}" if shape is None else what))


def _bare(key: str) -> str:
    """Vision halves are saved with and without their prefix."""
    return key.removeprefix(_PREFIX)
