"""Sharded training checkpoints: a folder to which every process wrote its part of the tensors.

step00001000.ckpt/
    .metadata, __0_0.distcp, __1_0.distcp, ...   tensors, by torch.distributed.checkpoint: "model.<name>" and
                                                 "optimizer.<name>.<moment>", readable by any number of processes
    meta.pt                                      everything else of a Lightning checkpoint
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lit_eve.errors import CheckpointError

META = "meta.pt"
MODEL, OPTIMIZER = "model.", "optimizer."
_TOGETHER = 2**28  # bytes; every read begins with the whole index


def is_sharded(path: str | Path) -> bool:
    """Whether ``path`` is a whole sharded checkpoint."""
    return Path(path, ".metadata").is_file() and zipfile.is_zipfile(Path(path, META))  # the directory of a zip is its end


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A training checkpoint whose tensors are still on disk: empty ones on the meta device for a sharded one, which have the
    shapes, and mapped memory for a single file.

    Raises:
        CheckpointError: it is neither, or cannot be read.
    """
    if is_sharded(path):
        shapes = {name: shape for name, (shape, _) in tensor_shapes(path).items() if name.startswith(MODEL)}
        state_dict = {name.removeprefix(MODEL): torch.empty(shape, device="meta") for name, shape in shapes.items()}
        return {**read_meta(path), "state_dict": state_dict}
    return _load(path, Path(path))


def read_meta(path: str | Path) -> dict[str, Any]:
    """Everything but the tensors of a sharded checkpoint.

    Raises:
        CheckpointError: it cannot be read.
    """
    return _load(path, Path(path, META))


def _load(path: str | Path, file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error


def tensor_shapes(path: str | Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of every tensor of a sharded checkpoint, by its full name.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        metadata = dcp.FileSystemReader(path).read_metadata()
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    entries = metadata.state_dict_metadata.items()
    return {name: (m.size, m.properties.dtype) for name, m in entries if isinstance(m, TensorStorageMetadata)}


def iterate_sharded(path: str | Path, prefix: str = "", skip: str | None = None) -> Iterator[tuple[str, Tensor]]:
    """Full tensors of a sharded checkpoint, on the CPU, some 256 MiB of them at a time.

    Args:
        prefix: only the tensors whose names begin so; it is cut off.
        skip: not those whose names begin so.

    Raises:
        CheckpointError: it cannot be read.
    """
    shapes = tensor_shapes(path)
    names = [name for name in shapes if name.startswith(prefix) and not (skip and name.startswith(skip))]
    while names:
        tensors: dict[str, Tensor] = {}
        while names and sum(tensor.nbytes for tensor in tensors.values()) < _TOGETHER:
            shape, dtype = shapes[name := names.pop(0)]
            tensors[name] = torch.empty(shape, dtype=dtype)
        load_tensors(path, tensors, no_dist=True)
        while tensors:
            name = next(iter(tensors))
            yield name.removeprefix(prefix), tensors.pop(name)


def load_tensors(path: str | Path, tensors: dict[str, Tensor], no_dist: bool = False) -> None:
    """Read tensors of a sharded checkpoint into those given, which may be sharded in any way.

    Args:
        no_dist: this process reads alone; otherwise all take part.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        dcp.load(dict(tensors), storage_reader=dcp.FileSystemReader(path), no_dist=no_dist)
    except (Exception, CheckpointException) as error:  # the second is a BaseException
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
