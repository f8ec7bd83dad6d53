"""The table that a running sweep shows: arms by seeds, what runs, how much is left."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lit_eve.sweeps.running import State
from lit_eve.sweeps.trials import Task, Trial, tasks_of
from lit_eve.sweeps.work import last_lines

SIGNS = {
    "finished": ("✓", "green"),
    "running": ("▸", "cyan"),
    "failed": ("✗", "red"),
    "pruned": ("–", "yellow"),
    "waiting": ("·", "dim"),
}
_STEP = re.compile(r"^step (\d+)/(\d+)\b", re.MULTILINE)


def picture(state: State, places: int) -> RenderableType:
    """What the terminal shows: a sign for each trial, what runs in words, and what is left."""
    seeds = list(dict.fromkeys(trial.seed for trial in state.trials))
    table = Table(box=None, pad_edge=False)
    table.add_column("arm / seed", overflow="fold")
    for seed in seeds:
        table.add_column(str(seed), justify="right", no_wrap=True)
    for arm in dict.fromkeys(trial.arm.name for trial in state.trials):
        signs = {trial.seed: Text(*SIGNS[state.of(trial)]) for trial in state.trials if trial.arm.name == arm}
        table.add_row(arm, *(signs.get(seed, Text()) for seed in seeds))
    return Group(table, *running(state), Text(summary(state, places), style="dim"))


def running(state: State) -> list[Text]:
    """A line for each task that runs: the first trial that it is for, and how far it is."""
    lines = []
    for name in state.running:
        trial, task = next((one, task) for one in state.trials for task in one.tasks.values() if task.name == name)
        share = progress(task)
        lines.append(
            Text(f"{SIGNS['running'][0]} {trial.name} {task.kind}" + (f" {share:.0%}" if share is not None else ""), "cyan")
        )
    return lines


def progress(task: Task) -> float | None:
    """How much of a stage is trained, as its log says; None before its first step."""
    steps = _STEP.findall(last_lines(task.log))
    return int(steps[-1][0]) / int(steps[-1][1]) if steps else None


def summary(state: State, places: int) -> str:
    """One line: trials that are finished, and the time that is left."""
    words = [state.of(trial) for trial in state.trials]
    parts = [f"{words.count('finished')} of {len(words)} trials finished"]
    parts += [f"{words.count(word)} {word}" for word in ("failed", "pruned") if word in words]
    if (left := seconds_left(state, places)) is not None:
        parts.append(f"about {_duration(left)} left")
    return ", ".join(parts)


def seconds_left(state: State, places: int) -> float | None:
    """What the tasks that are left will take, if they take as long as those of their kind; None before the first of a kind."""
    wanted = tasks_of([trial for trial in state.trials if state.of(trial) in ("running", "waiting")])
    taken: dict[str, list[float]] = {}
    for task in tasks_of(state.trials):
        if task.name in state.done:
            taken.setdefault(task.kind, []).append(task.journal.seconds(task.step))
    left = 0.0
    for task in wanted:
        if task.name in state.done or task.name in state.failed:
            continue
        if task.kind not in taken:
            return None
        whole = fmean(taken[task.kind])
        since = time.time() - state.running[task.name] if task.name in state.running else 0.0
        left += max(whole - since, 0.0)
    return left / max(1, places)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(1, minutes)} min"


class Lines:
    """What a sweep says where there is no terminal: a line for each trial that ends."""

    def __init__(self, console: Console) -> None:
        self.console, self.said = console, set[str]()

    def __call__(self, state: State, places: int) -> None:
        """Say what is new."""
        for trial in state.trials:
            word = state.of(trial)
            if word in ("finished", "failed", "pruned") and trial.name not in self.said:
                self.said.add(trial.name)
                self.console.print(f"{trial.name} {word} ({summary(state, places)})", highlight=False, soft_wrap=True)


def failures(state: State, trials: Sequence[Trial]) -> list[tuple[str, str]]:
    """Trials that failed, and why, with the end of the log."""
    return [
        (trial.name, next(state.failed[task.name] for task in trial.tasks.values() if task.name in state.failed))
        for trial in trials
        if state.of(trial) == "failed"
    ]
