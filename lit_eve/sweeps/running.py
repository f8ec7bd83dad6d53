"""Run the tasks of a sweep until none is left: what is ready is placed, what fails is noted, the others go on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lit_eve.sweeps.ablation import Resources
from lit_eve.sweeps.trials import Task, Trial, tasks_of
from lit_eve.sweeps.work import Order

POLL = 1.0
"""Seconds between two looks at running tasks."""


class Places(Protocol):
    """Where tasks run (:class:`~lit_eve.sweeps.placing.Placement`)."""

    resources: Resources

    @property
    def capacity(self) -> int:
        """How many tasks fit side by side."""
        ...

    def submit(self, order: Order) -> Any:
        """Begin a task."""
        ...

    def ended(self, running: Sequence[Any], seconds: float) -> list[tuple[Any, str | None]]:
        """Tasks that have ended, and why they failed."""
        ...

    def cancel(self, one: Any) -> None:
        """Stop a task."""
        ...


@dataclass
class State:
    """How a sweep stands."""

    trials: list[Trial]
    done: set[str] = field(default_factory=set)
    """Names of tasks."""
    running: dict[str, float] = field(default_factory=dict)
    """Names of tasks, and when they were placed."""
    failed: dict[str, str] = field(default_factory=dict)
    """Names of tasks, and why."""
    stopped: set[str] = field(default_factory=set)
    """Names of trials that were pruned."""

    def of(self, trial: Trial) -> str:
        """``finished``, ``failed``, ``pruned``, ``running`` or ``waiting``."""
        names = [task.name for task in trial.tasks.values()]
        if any(name in self.failed for name in names):
            return "failed"
        if trial.name in self.stopped:
            return "pruned"
        if all(name in self.done for name in names):
            return "finished"
        return "running" if any(name in self.running for name in names) else "waiting"


def run_tasks(
    trials: Iterable[Trial],
    places: Places,
    on_change: Callable[[State], None] = lambda state: None,
    more: Callable[[State], Iterable[Trial]] = lambda state: (),
    prune: Callable[[State], Iterable[Trial]] = lambda state: (),
) -> State:
    """Run every task that is not done.

    Args:
        trials: in the order in which they shall be finished.
        places: where tasks run.
        on_change: called after every look at the running tasks.
        more: trials to add, asked for whenever a place is free.
        prune: trials to stop.

    Returns:
        How the sweep stands at the end: nothing runs any more.
    """
    state = State(list(trials))
    references: dict[str, Any] = {}
    for task in tasks_of(state.trials):
        if task.is_done:
            state.done.add(task.name)
    while True:
        if len(references) < places.capacity:
            for trial in more(state):
                state.trials.append(trial)
                state.done |= {task.name for task in trial.tasks.values() if task.is_done}
        for trial in prune(state):
            _stop(trial, state, references, places)
        for task in _ready(state):
            if len(references) >= places.capacity:
                break
            references[task.name] = places.submit(_order(task, places.resources))
            state.running[task.name] = time.time()
        if not references:
            on_change(state)
            return state
        names = {id(reference): name for name, reference in references.items()}
        for reference, why in places.ended(list(references.values()), POLL):
            name = names[id(reference)]
            del references[name], state.running[name]
            if why is None:
                state.done.add(name)
            elif not _pruned(name, state):
                state.failed[name] = why
        on_change(state)


def _ready(state: State) -> list[Task]:
    """Tasks that can begin: all before them are done, and none is that they could borrow from while it is being made."""
    wanted = [trial for trial in state.trials if trial.name not in state.stopped]
    over = state.done | state.failed.keys()
    return [
        task
        for task in tasks_of(wanted)
        if task.name not in over
        and task.name not in state.running
        and all(before.name in state.done for before in task.after)
        and all(other.name in over for other in task.waits_for)
    ]


def _stop(trial: Trial, state: State, references: Mapping[str, Any], places: Places) -> None:
    """Stop what runs of a trial for no other trial."""
    state.stopped.add(trial.name)
    others = {task.name for other in state.trials if other.name not in state.stopped for task in other.tasks.values()}
    for task in trial.tasks.values():
        if task.name in references and task.name not in others:
            places.cancel(references[task.name])


def _pruned(name: str, state: State) -> bool:
    owners = [trial for trial in state.trials if any(task.name == name for task in trial.tasks.values())]
    return all(trial.name in state.stopped for trial in owners)


def _order(task: Task, resources: Resources) -> Order:
    return Order(task.step, task.journal.folder, task.log, task.command, max(1, int(resources.cores)), os.getcwd())
