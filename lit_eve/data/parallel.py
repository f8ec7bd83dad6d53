"""The same job for many things: several at a time, with a progress bar."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lit_eve.errors import LitEveError

T = TypeVar("T")
_arguments: tuple[Any, ...] = ()


def for_each_shard(
    job: Callable[..., object], shards: Sequence[Path], *arguments: Any, title: str, processes: int = 1, progress: bool = False
) -> None:
    """Call ``job(shard, *arguments)`` for each shard.

    Args:
        job: a function of a module.
        arguments: go to each process once, not with each shard.
        title: what the progress bar says.
        processes: how many shards at a time.
        progress: show the bar.

    Raises:
        Whatever the job raises; jobs that have not begun are dropped.
        LitEveError: a process was killed.
    """
    with _bar(title, len(shards), progress and bool(shards)) as advance:
        for _ in in_any_order(job, shards, *arguments, processes=min(processes, len(shards))):
            advance()


def in_any_order(job: Callable[..., T], items: Iterable[Any], *arguments: Any, processes: int = 1) -> Iterator[T]:
    """The results of ``job(item, *arguments)``, as they are ready. Few items are taken ahead, so there may be any number.

    Args:
        job: a function of a module.
        arguments: go to each process once, not with each item.
        processes: how many at a time; one means this process.

    Raises:
        Whatever the job or ``items`` raises; jobs that have not begun are dropped.
        LitEveError: a process was killed.
    """
    if processes <= 1:
        for item in items:
            yield job(item, *arguments)
        return
    # with spawn, Python would run the caller's script again
    context = get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(processes, context, initializer=_start, initargs=(os.getpid(), arguments)) as pool:
        running: set[Future[T]] = set()
        try:
            for item in items:
                running.add(pool.submit(_call, job, item))
                if len(running) >= 2 * processes:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool as error:
            raise LitEveError(
                "a worker process was killed, perhaps because memory ran out; what is done stays done, call again to go on"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _start(parent: int, arguments: tuple[Any, ...]) -> None:
    global _arguments
    _arguments = arguments
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism here
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback; the parent says what there is to say
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose parent was killed would wait for its next job for ever, or write beside the run that goes on."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _call(job: Callable[..., T], item: Any) -> T:
    return job(item, *_arguments)


@contextmanager
def _bar(title: str, total: int, visible: bool) -> Iterator[Callable[[], None]]:
    """A rich progress bar; yields the function that advances it by one."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not visible) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
