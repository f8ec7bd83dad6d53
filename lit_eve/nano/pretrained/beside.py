"""Two small trainings at a time: models of this size gain nothing from a second core, so each takes one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any


@contextmanager
def beside(log: Path, work: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """Run ``work(*arguments)`` in a process beside the body of the ``with``; both are over when that ends.

    A head start and no more: the process may fail or be killed, so call ``work`` again afterwards, which finds it done or
    goes on with what is missing. It dies with this process. On a machine with one core nothing is started.

    Args:
        log: file for what ``work`` prints.
        work: a function of a module that can go on where it was interrupted.
    """
    if (os.cpu_count() or 1) < 2:
        yield
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    process = get_context("spawn").Process(target=_work, args=(log, work, *arguments), daemon=True)
    process.start()
    try:
        yield
        process.join()
    finally:
        process.terminate()
        process.join()


def _work(log: Path, work: Callable[..., Any], *arguments: Any) -> None:
    def die_with_parent() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=die_with_parent, daemon=True).start()
    with open(log, "wb") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    work(*arguments)
