"""Jobs in several processes: any number of items, in any order; whoever is killed ends the others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_eve.data.parallel import in_any_order
from lit_eve.errors import LitEveError


def square(number: int, offset: int) -> int:
    return number * number + offset


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def nap(number: int, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("processes", [1, 3])
def test_all_results_once_and_few_items_taken_ahead(processes: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(200):
            taken.append(number)
            yield number

    results = in_any_order(square, items(), 5, processes=processes)
    first = next(results)
    assert len(taken) <= 2 * processes
    assert sorted([first, *results]) == [number * number + 5 for number in range(200)]


def test_a_killed_worker_is_an_error_not_a_wait() -> None:
    with pytest.raises(LitEveError, match="a worker process was killed"):
        list(in_any_order(die_at_three, range(100), processes=2))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    parent = context.Process(target=lambda: list(in_any_order(nap, range(4), tmp_path, processes=2)))
    parent.start()
    deadline = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 2 and all(map(is_alive, workers))
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    orphans = [worker for worker in workers if is_alive(worker)]
    for worker in orphans:
        os.kill(worker, signal.SIGKILL)
    assert not orphans
