"""Steps that are done once: each knows what it was made from, how long it took, and whether it is complete.

A step's state is one small file, replaced atomically: killed at any moment, a run goes on at the step where it was. How a
step goes on inside (a training from its checkpoint, a data set at its next shard) is the step's own business.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_eve.errors import ConfigError
from lit_eve.files import write_atomically

HEARTBEAT = 1.0  # seconds; a kill loses at most so much of the time taken
CLOCKS = ("seconds", "core_seconds")
"""What the state of a step counts: the time that passed, and the work of cores, which does not grow on a busy machine."""


@dataclass(frozen=True)
class Step:
    """Something to make.

    Args:
        name: also of its state's file.
        title: what it does, in the words of the progress line.
        output: what it makes, a file or folder; if that is gone, the step is not done.
        settings: all that decides what comes out, as JSON.
        run: makes it. Called again after an interruption, it goes on or starts over.
        after: the steps whose outputs it reads.
    """

    name: str
    title: str
    output: Path
    settings: Mapping[str, Any]
    run: Callable[[], None]
    after: tuple[Step, ...] = ()

    @property
    def digest(self) -> str:
        """Changes with the settings of this step and of all before it."""
        parts = [json.dumps(self.settings, sort_keys=True), *(step.digest for step in self.after)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class Journal:
    """The states of the steps of a run, in a folder of small files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def seconds(self, step: Step) -> float:
        """Time that the step took, over all attempts."""
        return self._read(step).get("seconds", 0.0)

    def core_seconds(self, step: Step) -> float:
        """Seconds of one core that the step took, its processes included, over all attempts."""
        return self._read(step).get("core_seconds", 0.0)

    def is_done(self, step: Step) -> bool:
        """Whether the step is complete, and made as it would be made now.

        Raises:
            ConfigError: it was made, or begun, with other settings; the message names them.
        """
        state = self._read(step)
        if not state or not step.output.exists():
            return False
        before = f"{step.output} was {'made' if state['done'] else 'begun'}"
        remedy = f"--redo {step.name} makes it and what depends on it again; --output names another folder"
        if different := list(changes(state["settings"], json.loads(json.dumps(step.settings)))):
            raise ConfigError(f"{before} with other settings ({'; '.join(different[:5])}). {remedy}")
        for earlier in step.after:
            if state["made_from"].get(earlier.name) != earlier.digest:
                raise ConfigError(f"{before} from another {earlier.name}. {remedy}")
        return state["done"]

    def knows(self, step: Step) -> bool:
        """Whether the step was ever begun."""
        return self._path(step).exists()

    def take(self, step: Step, other: Journal) -> None:
        """Note that the step was made by another run, whose journal tells how."""
        self._write(step, other._read(step))

    def begin(self, step: Step) -> None:
        """Note what a step is made from, for work on it ahead of its turn; `run` will go on with it."""
        self._write(step, self._unfinished(step))

    def run(self, step: Step) -> None:
        """Run a step that is not done, counting the time."""
        state = self._unfinished(step)
        with self._clock(step, state):
            step.run()
            state["done"] = True

    def forget(self, steps: Sequence[Step]) -> None:
        """Remove what these steps made, and that they did."""
        for step in steps:
            self._path(step).unlink(missing_ok=True)
            if step.output.is_dir():
                shutil.rmtree(step.output)
            else:
                step.output.unlink(missing_ok=True)

    @contextmanager
    def _clock(self, step: Step, state: dict[str, Any]) -> Iterator[None]:
        """Keep the times in the step's file up to date, so that a kill does not lose them."""
        before, start, stop = [state[clock] for clock in CLOCKS], _clocks(), threading.Event()

        def write() -> None:
            taken = zip(before, _clocks(), start, strict=True)
            state.update(zip(CLOCKS, (round(old + now - then, 2) for old, now, then in taken), strict=True))
            self._write(step, state)

        def beat() -> None:
            while not stop.wait(HEARTBEAT):
                write()

        write()
        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            write()

    def _unfinished(self, step: Step) -> dict[str, Any]:
        begun = self._read(step) if step.output.exists() else {}
        return {
            "settings": step.settings,
            "made_from": {earlier.name: earlier.digest for earlier in step.after},
            **{clock: begun.get(clock, 0.0) for clock in CLOCKS},
            "done": False,
        }

    def _write(self, step: Step, state: dict[str, Any]) -> None:
        write_atomically(self._path(step), json.dumps(state, indent=2) + "\n")

    def _path(self, step: Step) -> Path:
        return self.folder / f"{step.name}.json"

    def _read(self, step: Step) -> dict[str, Any]:
        path = self._path(step)
        return json.loads(path.read_text()) if path.exists() else {}


def _clocks() -> tuple[float, float]:
    """Now, in seconds: on the wall, and of the cores that this process and its ended children have used."""
    return time.monotonic(), sum(os.times()[:4])


def dependents(steps: Sequence[Step], name: str) -> list[Step]:
    """The step of that name and all that are made from it, directly or not.

    Raises:
        ConfigError: there is no such step.
    """
    if name not in (known := [step.name for step in steps]):
        raise ConfigError(f"there is no step {name!r}; the steps are {', '.join(known)}")
    affected = {name}
    for step in steps:
        if affected & {earlier.name for earlier in step.after}:
            affected.add(step.name)
    return [step for step in steps if step.name in affected]


def changes(old: Any, new: Any, key: str = "") -> Iterator[str]:
    """The settings that differ, as "key: old, now new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif old != new:
        yield f"{key}: {json.dumps(old)}, now {json.dumps(new)}"
