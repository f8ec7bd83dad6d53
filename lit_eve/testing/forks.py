"""Runs a function in processes that know of each other, as ``torchrun`` would start them: forks of this one."""

from __future__ import annotations

import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.distributed import destroy_process_group, is_initialized
from torch.multiprocessing import start_processes

from lit_eve.errors import LitEveError

TIMEOUT = 300.0
"""Seconds after which processes are ended."""


def in_processes(count: int, work: Callable[..., object], *args: object) -> str:
    """Call ``work(*args)`` in forks of this process, which spares them the imports, and wait for all.

    Returns:
        What they wrote to stderr, warnings among it.

    Raises:
        LitEveError: this process knows a GPU: torch refuses to train in its forks.
        ProcessRaisedException: of the first process that raised; the others are ended. A note holds what all wrote.
        ProcessExitedException: one ended itself, or was killed.
        TimeoutError: they did not end.
    """
    if torch.cuda.device_count():
        raise LitEveError("forks of this process are to train on the CPU: start it with CUDA_VISIBLE_DEVICES=")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        log = Path(folder, "stderr.txt")
        log.touch()
        all_of_them = start_processes(_process, (count, port, log, work, args), nprocs=count, join=False, start_method="fork")
        deadline = time.monotonic() + TIMEOUT
        try:
            while not all_of_them.join(timeout=0.1):
                if time.monotonic() > deadline:
                    for process in all_of_them.processes:
                        process.kill()
                    raise TimeoutError(f"{TIMEOUT:.0f} s are over")
        except Exception as error:
            error.add_note(log.read_text()[-4000:])
            raise
        return log.read_text()


def _process(rank: int, count: int, port: int, log: Path, work: Callable[..., object], args: tuple) -> None:
    if count > 1:
        os.environ |= {
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "GROUP_RANK": "0",
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "TORCHELASTIC_RUN_ID": "forks",
        }
    torch.set_num_threads(1)  # a pool of threads does not live on in a fork
    _write_to(log)
    work(*args)
    if is_initialized():
        destroy_process_group()


def _write_to(log: Path) -> None:
    """Take output and warnings away from the terminal and from pytest."""
    sys.stderr = log.open("a", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    warnings.simplefilter("default")
    warnings.showwarning = lambda *warning, **_: print(warnings.formatwarning(*warning[:4]), file=sys.stderr)
