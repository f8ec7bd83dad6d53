"""The two collectives that training needs beside those of its strategy."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of ``values`` over all ranks, in place. Lightning's own begins with a barrier, which waits for the device."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values


def gather_objects(value: T) -> list[T]:
    """``value`` of every rank, on every rank. Slow: for errors."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    gathered: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
