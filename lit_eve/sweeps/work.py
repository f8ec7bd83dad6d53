"""What is done where a task is placed: its process, once at a time, with its time and its log.

``python -m lit_eve.sweeps.work ground|evaluation FOLDER JSON`` is the process of tasks that are no stages.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lit_eve.errors import LitEveError
from lit_eve.nano.steps import Journal, Step

LAST_LINES = 30
"""Of a log, in the report of a task that failed."""
SPARE_GB = 1.0
"""Free space without which no task begins."""
FULL = 20e6
"""Bytes; where fewer are free, a process failed for that, and could perhaps not even say so."""


class TaskError(LitEveError):
    """A task failed; the message ends with the end of its log."""


@dataclass(frozen=True)
class Order:
    """A task as it travels to the machine that does it."""

    step: Step
    journal: Path
    log: Path
    command: tuple[str, ...]
    cores: int = 1
    working_folder: str = "."


def carry_out(order: Order) -> None:
    """Run the process of a task to its end, unless that has been done.

    No two processes of one task run at a time, also of other sweeps with the same store: whoever comes later waits, and finds
    it done. The process ends with the one that called it.

    Raises:
        TaskError: it failed, or its disk is full.
    """
    folder, journal = order.step.output, Journal(order.journal)
    order.log.parent.mkdir(parents=True, exist_ok=True)
    with _alone(order.log.with_suffix(".lock")) as lock:
        if journal.is_done(order.step):  # not without its folder, which must not be there before
            return
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free / 1e9
        if free < SPARE_GB:
            raise TaskError(f"{folder}: the disk has {free:.1f} GB left, and a task begins with {SPARE_GB:g} GB or more")
        try:
            journal.run(replace(order.step, run=lambda: _run(order, lock)))
        except OSError as error:
            raise TaskError(f"{folder}: {error.strerror or error}") from error


def _run(order: Order, lock: int) -> None:
    threads = {"OMP_NUM_THREADS": str(order.cores), "OMP_WAIT_POLICY": "PASSIVE"}
    with order.log.open("ab") as log:
        process = subprocess.Popen(
            order.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=order.working_folder,
            env={**os.environ, **threads},
            pass_fds=(lock,),  # it stays locked for as long as one of both lives
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code:
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        full = "; its disk is full" if shutil.disk_usage(order.step.output).free < FULL else ""
        raise TaskError(f"{order.step.name} {how}{full}\n{last_lines(order.log)}")


def last_lines(log: Path, count: int = LAST_LINES) -> str:
    """The end of a log; nothing where there is none."""
    try:
        return "\n".join(log.read_text("utf-8", "replace").replace("\r", "\n").splitlines()[-count:])
    except OSError:
        return ""


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: a training then saves a checkpoint and ends


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """Hold a lock, which ends with the last process that has it."""
    with path.open("w") as file:
        while True:  # waiting inside flock could not be cancelled
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.2)
        yield file.fileno()


# ---- processes of tasks that are no stages


def prepare_ground(folder: Path, settings: Mapping[str, object]) -> None:
    """Make world, language model and teacher in ``folder``, or take over what another ground of the seed has of them."""
    import yaml

    from lit_eve.files import write_atomically
    from lit_eve.nano.ground import SHARED, borrow, ground_steps, make_ground

    def steps_in(folder: Path, with_teacher: bool) -> tuple[list[Step], Journal]:
        journal = Journal(folder / "steps")
        return ground_steps(folder, folder / "config", with_teacher, journal), journal

    for stem in SHARED.values():
        write_atomically(folder / "config" / f"{stem}.yaml", yaml.safe_dump(settings[stem], sort_keys=False))
    steps, journal = steps_in(folder, bool(settings["with_teacher"]))
    for other in sorted(folder.parent.glob("ground-*/config")):
        if other.parent != folder and (other.parent / "steps").is_dir():
            borrow(steps, journal, *steps_in(other.parent, True))
    make_ground(steps, journal, but=["benchmarks"])


def evaluate(folder: Path, runs: Mapping[str, str | None]) -> None:
    """Measure the stages of a trial on the test scenes of its world."""
    from lit_eve.nano.measurement import measure

    captioner, answerer = (None if runs[key] is None else Path(runs[key]) for key in ("captioner", "answerer"))
    measure(folder, Path(runs["data"]), captioner, answerer)


def main(arguments: Sequence[str] | None = None) -> None:
    """Do one task."""
    kind, folder, settings = sys.argv[1:] if arguments is None else arguments
    {"ground": prepare_ground, "evaluation": evaluate}[kind](Path(folder), json.loads(settings))


if __name__ == "__main__":
    main()
