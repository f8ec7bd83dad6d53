"""Weights of vision encoders, as transformers saves them: looked at before data is read, and streamed into a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lit_eve.errors import CheckpointError, one_line
from lit_eve.models.checkpoints.folders import find_model_folder, is_hub_name
from lit_eve.models.checkpoints.renaming import as_in_memory
from lit_eve.models.checkpoints.weights import file_of_each_weight, read_file, weight_files
from lit_eve.vision_towers import build_tower, family_of, read_tower


def check_tower(name: str, key: str) -> None:
    """Look at the files of a vision encoder; of a name on the hub, at the copy in the cache, for which what is missing is
    downloaded.

    Args:
        name: folder or hub name.
        key: the setting that holds it ("model.teacher"), for messages.

    Raises:
        CheckpointError: it is none, cannot be had, or files or weights of its vision half are missing, damaged or of another
            shape.
    """
    if Path(name).is_file():
        raise CheckpointError(f"{key}: {name} is a file; give the folder that it lies in")
    if is_hub_name(name):
        try:
            find_model_folder(name)
        except CheckpointError as error:
            raise CheckpointError(f"{key}: {error}") from error
    config, _ = read_tower(name, key)
    tower = empty_tower(config, name, key)
    found = {weight: tuple(value.shape) for weight, value in tower_weights(name, tower, key, shapes_only=True)}
    for weight, tensor in tower.state_dict().items():
        if (shape := found.get(weight)) != tuple(tensor.shape):
            what = f"has {weight} of the shape {shape}, where its config.json says {tuple(tensor.shape)}"
            raise CheckpointError(f"{key}: {name} " + (f"lacks {weight}" if shape is None else what))


def empty_tower(config: PreTrainedConfig, name: str, key: str) -> nn.Module:
    """The whole vision half on the meta device.

    Raises:
        CheckpointError: the config of ``name`` cannot be.
    """
    try:
        with torch.device("meta"):
            return build_tower(config)
    except Exception as error:  # of what stands in a file, transformers raises errors of all kinds
        title = family_of(config).title
        raise CheckpointError(f"{key}: {name}: its config.json describes no {title}: {one_line(error)}") from error


def tower_weights(name: str, tower: nn.Module, key: str, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """The weights of a vision half, one after another, under the names that they have in ``tower``.

    Args:
        name: folder or hub name; of a model with a text half, this is passed over.
        tower: on the meta device; weights that it does not have are passed over.
        key: the setting that holds ``name``, for messages.
        shapes_only: tensors are on the meta device, and no file is read but its table of contents.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    try:
        folder = find_model_folder(name)
        file_of = file_of_each_weight(weight_files(folder))
        expected = tower.state_dict().keys()
        read = lambda one: read_file(file_of[one])[one].to("meta" if shapes_only else "cpu")  # noqa: E731
        yield from ((weight, value) for weight, value in as_in_memory(tower, file_of, read, str(folder)) if weight in expected)
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}") from error
