"""Writing and reading sharded checkpoints (format: :mod:`lit_eve.models.checkpoints.sharded`) during training.

Tensors are keyed by the names of parameters, optimizer states too, so that neither the number of processes nor the order of
the parameter groups matters.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.filling import copy_into
from lit_eve.models.checkpoints.sharded import (
    META,
    MODEL,
    OPTIMIZER,
    is_sharded,
    iterate_sharded,
    load_tensors,
    read_meta,
    tensor_shapes,
)

log = logging.getLogger(__name__)


class ShardedCheckpoints:
    """Writes checkpoints, at most one at a time.

    The folder is written beside its place and renamed when every process has written its part: under its final name it is
    always whole, and the checkpoint before it stays until then.

    Args:
        asynchronous: return as soon as the tensors are copied to the CPU's memory, and write in a thread.
        timeout: how long a process waits for the others.
    """

    def __init__(self, asynchronous: bool = True, timeout: timedelta | None = None) -> None:
        self.asynchronous = asynchronous
        self.timeout = timeout
        self._group: dist.ProcessGroup | None = None
        self._writing: tuple[Future, Path] | None = None

    def save(self, checkpoint: dict[str, Any], path: str | Path) -> None:
        """Write a checkpoint of Lightning's; all processes call this together.

        Args:
            checkpoint: its ``state_dict`` and ``optimizer_states`` are this process's parts; the first process's other entries
                are kept.

        Raises:
            CheckpointError: it cannot be written, or the one before it could not be.
        """
        self.wait()
        path = Path(path)
        part = _part(path)
        tensors, rest = _split(checkpoint)
        if self._group is None:  # the background's messages must not mix with the training's
            self._group = dist.new_group(backend="gloo", timeout=self.timeout)
        with _refusals(path):
            if dist.get_rank() == 0:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir(parents=True)
                with open(part / META, "wb") as file:
                    torch.save(rest, file)
                    file.flush()
                    os.fsync(file.fileno())
        dist.barrier(group=self._group)
        with _refusals(path):
            self._writing = self._begin(tensors, part), path
        if not self.asynchronous:
            self.wait()

    def poll(self) -> None:
        """Finish the checkpoint that is being written if it is complete.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is not None and self._writing[0].done():
            self._finish()

    def wait(self) -> None:
        """Finish the checkpoint that is being written, if there is one.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is not None:
            self._finish()

    def close(self) -> None:
        """The same at the end of a run, which may have failed: then nothing more is raised."""
        try:
            self.wait()
        except CheckpointError as error:
            log.warning("%s", error)

    def _begin(self, tensors: dict[str, Tensor], part: Path) -> Future:
        writer = dcp.FileSystemWriter(part)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated")
            return dcp.async_save(tensors, storage_writer=writer, process_group=self._group)

    def _finish(self) -> None:
        (future, path), self._writing = self._writing, None
        with _refusals(path):
            future.result()
            if dist.get_rank() == 0:
                old = path.with_name(f".{path.name}.old.part")
                if path.exists():  # set aside, so that one of the two is there at any moment
                    os.replace(path, old)
                _sync(_part(path))
                os.replace(_part(path), path)
                _sync(path.parent)
                shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Say in one sentence why a checkpoint could not be written, and drop what was."""
    try:
        yield
    except (Exception, CheckpointException) as error:  # the second is a BaseException
        shutil.rmtree(_part(path), ignore_errors=True)
        failures = getattr(error, "failures", None)  # by rank, of torch.distributed.checkpoint
        raise not_written(path, next(iter(failures.values()))[0] if failures else error) from error


def not_written(path: Path, reason: BaseException) -> CheckpointError:
    """The sentence for a checkpoint that could not be written."""
    cause: BaseException | None = reason  # torch's writers put errors of their own around the system's
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    reason = cause or reason
    return CheckpointError(f"the checkpoint {path} could not be written ({reason}); earlier ones are still there")


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _part(path: Path) -> Path:
    """Where a checkpoint is written before it is renamed."""
    return path.with_name(f".{path.name}.part")


def _split(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under the names of the format, and the rest of a checkpoint."""
    rest = dict(checkpoint)
    tensors = {f"{MODEL}{name}": value for name, value in rest.pop("state_dict").items()}
    rest["optimizer_states"] = []
    for state in checkpoint.get("optimizer_states", ()):
        for name, moments in _named_states(state):
            tensors |= {f"{OPTIMIZER}{name}.{key}": value for key, value in moments.items()}
        rest["optimizer_states"].append({"state": {}, "param_groups": state["param_groups"]})
    return tensors, rest


def _named_states(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for name, index in _named(state["param_groups"]):
        if index in state["state"]:
            yield name, state["state"][index]


def _named(groups: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for group in groups:
        yield from zip(group["param_names"], group["params"], strict=True)


def read_whole_checkpoint(path: str | Path) -> dict[str, Any]:
    """A sharded checkpoint with full tensors, as one process without sharding needs it.

    Raises:
        CheckpointError: it cannot be read.
    """
    checkpoint = read_meta(path)
    checkpoint["state_dict"] = dict(iterate_sharded(path, MODEL))
    states = _by_parameter(iterate_sharded(path, OPTIMIZER))
    for saved in checkpoint["optimizer_states"]:
        saved["state"] = {index: states[name] for name, index in _named(saved["param_groups"]) if name in states}
    return checkpoint


@torch.no_grad()
def load_model(path: str | Path, checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Copy the weights of a checkpoint into a module, whose parameters may be sharded.

    Args:
        checkpoint: from :func:`~lit_eve.models.checkpoints.sharded.read_checkpoint`; names and shapes are those of the module.
    """
    places = module.state_dict()
    if is_sharded(path):
        load_tensors(path, {f"{MODEL}{name}": place for name, place in places.items()})
        return
    for name, place in places.items():
        copy_into(place, checkpoint["state_dict"][name])


@torch.no_grad()
def load_optimizer(path: str | Path, checkpoint: dict[str, Any], optimizer: Optimizer) -> None:
    """Restore the optimizer's state, sharded as the parameters are."""
    saved = checkpoint["optimizer_states"][0]
    parameters = dict(_named(optimizer.param_groups))
    if is_sharded(path):
        entries = {key: entry for key, entry in tensor_shapes(path).items() if key.startswith(OPTIMIZER)}
        keys = {key: key.removeprefix(OPTIMIZER).rsplit(".", 1)[0] for key in entries}  # -> the parameter
        places = {key: _room(parameters[name], *entries[key]) for key, name in keys.items() if name in parameters}
        load_tensors(path, places)
        named = _by_parameter((key.removeprefix(OPTIMIZER), value) for key, value in places.items())
    else:
        named = {
            name: {key: _own_part(parameters[name], value) for key, value in moments.items()}
            for name, moments in _named_states(saved)
            if name in parameters
        }
    index_of = dict(_named(saved["param_groups"]))
    optimizer.load_state_dict({**saved, "state": {index_of[name]: moments for name, moments in named.items()}})


def _by_parameter(moments: Iterable[tuple[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """("projector.0.weight.exp_avg", tensor) -> {"projector.0.weight": {"exp_avg": tensor}}."""
    named: dict[str, dict[str, Tensor]] = {}
    for key, value in moments:
        name, moment = key.rsplit(".", 1)
        named.setdefault(name, {})[moment] = value
    return named


def _room(parameter: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(parameter, dtype=dtype) if shape == parameter.shape else torch.zeros(shape, dtype=dtype)


def _own_part(parameter: Tensor, value: Tensor) -> Tensor:
    if value.shape != parameter.shape:
        return value
    place = torch.zeros_like(parameter, dtype=value.dtype)
    copy_into(place, value)
    return place
