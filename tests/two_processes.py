"""Runs a function in two processes that know of each other, as ``torchrun`` would start them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lit_eve.testing.forks import in_processes

PROCESSES = 2


def in_two_processes(work: Callable[..., object], *args: object) -> str:
    """:func:`~lit_eve.testing.forks.in_processes`, where it can be."""
    if torch.cuda.device_count():
        pytest.skip("forks two processes: to be run with CUDA_VISIBLE_DEVICES=")
    return in_processes(PROCESSES, work, *args)
