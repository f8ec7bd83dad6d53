"""Runs a function in two processes that know of each other, as ``torchrun`` would start them."""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch.distributed import destroy_process_group, is_initialized
from torch.multiprocessing import start_processes

PROCESSES = 2
TIMEOUT = 300.0  # seconds


def in_two_processes(work: Callable[..., object], *args: object) -> str:
    """Call ``work(*args)`` in two forks of this process, which spares them the imports, and wait for both.

    Returns:
        What they wrote to stderr, warnings among it.

    Raises:
        ProcessRaisedException: of the first process that raised; the other is ended. A note holds what both wrote.
        ProcessExitedException: one ended itself, or was killed.
        TimeoutError: they did not end.
    """
    if torch.cuda.device_count():  # torch refuses to train in the fork of a process that has trained and knows a GPU
        pytest.skip("forks two processes: to be run with CUDA_VISIBLE_DEVICES=")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        log = Path(folder, "stderr.txt")
        log.touch()
        both = start_processes(_process, (port, log, work, args), nprocs=PROCESSES, join=False, start_method="fork")
        deadline = time.monotonic() + TIMEOUT
        try:
            while not both.join(timeout=1):
                if time.monotonic() > deadline:
                    for process in both.processes:
                        process.kill()
                    raise TimeoutError(f"{TIMEOUT:.0f} s are over")
        except Exception as error:
            error.add_note(log.read_text()[-4000:])
            raise
        return log.read_text()


def _process(rank: int, port: int, log: Path, work: Callable[..., object], args: tuple) -> None:
    os.environ |= {
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(PROCESSES),
        "LOCAL_WORLD_SIZE": str(PROCESSES),
        "TORCHELASTIC_RUN_ID": "tests",
    }
    torch.set_num_threads(1)  # a pool of threads does not live on in a fork
    _write_to(log)
    work(*args)
    if is_initialized():
        destroy_process_group()


def _write_to(log: Path) -> None:
    """Take stderr and the warnings away from pytest."""
    sys.stderr = log.open("a", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    warnings.simplefilter("default")
    warnings.showwarning = lambda *warning, **_: print(warnings.formatwarning(*warning[:4]), file=sys.stderr)
