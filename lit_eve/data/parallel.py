"""The same job for many shards: several at a time, with a progress bar."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
    """
    processes = min(processes, len(shards))
    with _bar(title, len(shards), progress and bool(shards)) as advance:
        if processes <= 1:
            for shard in shards:
                job(shard, *arguments)
                advance()
            return
        # with spawn, Python would run the caller's script again
        context = get_context("fork" if sys.platform == "linux" else None)
        with ProcessPoolExecutor(processes, context, initializer=_start, initargs=arguments) as pool:
            futures = [pool.submit(_call, job, shard) for shard in shards]
            try:
                for future in as_completed(futures):
                    future.result()
                    advance()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _start(*arguments: Any) -> None:
    global _arguments
    _arguments = arguments
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism here


def _call(job: Callable[..., object], shard: Path) -> None:
    job(shard, *_arguments)


@contextmanager
def _bar(title: str, total: int, visible: bool) -> Iterator[Callable[[], None]]:
    """A rich progress bar; yields the function that advances it by one."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not visible) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
