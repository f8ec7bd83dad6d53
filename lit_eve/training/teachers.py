"""Is a teacher a CLIP, and are all its weights there? Asked before data is read; the weights themselves are not."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from lit_eve.errors import CheckpointError, one_line
from lit_eve.models.checkpoints.folders import find_model_folder, is_hub_name, read_json
from lit_eve.models.checkpoints.weights import read_file, weight_files

_TYPES = ("clip", "clip_vision_model")
_PREFIX = "vision_model."


def check_teacher(name: str) -> None:
    """Look at the files of a teacher; of a name on the hub, at the copy in the cache, for which what is missing is downloaded.

    Raises:
        CheckpointError: it is no CLIP, cannot be had, or files or weights of its vision half are missing, damaged or of another
            shape.
    """
    folder = Path(name)
    if folder.is_file():
        raise CheckpointError(f"model.teacher: {name} is a file; give the folder that it lies in")
    if is_hub_name(name):
        try:
            folder = find_model_folder(name)
        except CheckpointError as error:
            raise CheckpointError(f"model.teacher: {error}") from error
    if not folder.is_dir():  # which is said where its config is read
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
    try:
        with torch.device("meta"):
            needed = CLIPVisionModel(CLIPVisionConfig.from_pretrained(folder)).state_dict()
    except Exception as error:  # of what stands in a file, transformers raises errors of all kinds
        raise CheckpointError(f"model.teacher: {name}: its config.json describes no CLIP: {one_line(error)}") from error
    for key, tensor in needed.items():
        if (shape := found.get(_bare(key))) != tuple(tensor.shape):
            what = f"has {key} of the shape {shape}, where its config.json says {tuple(tensor.shape)}"
            raise CheckpointError(f"model.teacher: {name} " + (f"lacks {key}" if shape is None else what))


def _bare(key: str) -> str:
    """Vision halves are saved with and without their prefix."""
    return key.removeprefix(_PREFIX)
