"""Which tasks run when, with tasks that take no time."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lit_eve.errors import ConfigError
from lit_eve.nano.steps import Journal
from lit_eve.sweeps.ablation import Arm, Resources
from lit_eve.sweeps.placing import Placement
from lit_eve.sweeps.running import State, run_tasks
from lit_eve.sweeps.table import Lines, picture, summary
from lit_eve.sweeps.trials import Task, Trial
from lit_eve.sweeps.work import Order


class Places:
    """Does one task at each look, the first that was submitted; some fail."""

    def __init__(self, capacity: int = 2, fails: Sequence[str] = ()) -> None:
        self.resources, self.capacity, self.fails = Resources(), capacity, fails
        self.queue: list[Order] = []
        self.most, self.ran, self.cancelled = 0, list[str](), set[str]()

    def submit(self, order: Order) -> Order:
        self.queue.append(order)
        self.most = max(self.most, len(self.queue))
        return order

    def ended(self, running: Sequence[Any], seconds: float) -> list[tuple[Any, str | None]]:
        order = self.queue.pop(0)
        self.ran.append(order.step.name)
        if order.step.name in self.cancelled:
            return [(order, "it was stopped")]
        if any(order.step.name.startswith(name) for name in self.fails):
            return [(order, "broken\nlast line")]
        Journal(order.journal).run(replace(order.step, run=lambda: order.step.output.mkdir(parents=True)))
        return [(order, None)]

    def cancel(self, one: Order) -> None:
        self.cancelled.add(one.step.name)


def chain(output: Path, arm: str, seed: int, *kinds: str, shared: Sequence[str] = ()) -> Trial:
    """A trial whose tasks follow each other; those of ``shared`` are the same for all arms."""
    tasks: dict[str, Task] = {}
    for kind in kinds:
        settings = {} if kind in shared else {"arm": arm}
        tasks[kind] = Task(kind, seed, output, settings, tuple(tasks.values())[-1:])
    return Trial(Arm(arm), seed, tasks, ())


def test_shared_tasks_run_once_and_seeds_one_after_the_other(tmp_path: Path) -> None:
    trials = [chain(tmp_path, arm, seed, "ground", "1_a", "2_b", shared=["ground"]) for seed in (0, 1) for arm in ("x", "y")]
    places = Places()
    state = run_tasks(trials, places)
    kinds = [name.split("-")[0] for name in places.ran]
    assert kinds.count("ground") == 2 and len(kinds) == 10 and places.most == 2
    assert all(state.of(trial) == "finished" and trial.is_done for trial in trials)
    seeds = [[task.step.name for trial in trials if trial.seed == seed for task in trial.tasks.values()] for seed in (0, 1)]
    last_of_0 = max(places.ran.index(name) for name in seeds[0])
    assert last_of_0 < len(places.ran) - 3


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    trials = [chain(tmp_path, "x", 0, "1_a", "2_b")]
    run_tasks(trials, Places())
    again = Places()
    state = run_tasks([chain(tmp_path, "x", 0, "1_a", "2_b")], again)
    assert again.ran == [] and state.of(trials[0]) == "finished"


def test_a_failed_task_stops_its_trials_alone(tmp_path: Path) -> None:
    trials = [chain(tmp_path, arm, 0, "ground", f"1_{arm}", "2_b", shared=["ground"]) for arm in ("x", "y")]
    places = Places(fails=["1_x"])
    state = run_tasks(trials, places)
    assert [state.of(trial) for trial in trials] == ["failed", "finished"]
    assert state.failed == {trials[0].tasks["1_x"].name: "broken\nlast line"}
    assert "1 of 2 trials finished, 1 failed" in summary(state, 2)
    repaired = Places()
    assert run_tasks(trials, repaired).of(trials[0]) == "finished" and len(repaired.ran) == 2


def test_what_could_borrow_waits(tmp_path: Path) -> None:
    one = Task("ground", 0, tmp_path, {"teacher": 1})
    other = Task("ground", 0, tmp_path, {"teacher": 2}, waits_for=(one,))
    trials = [Trial(Arm("x"), 0, {"ground": one}, ()), Trial(Arm("y"), 0, {"ground": other}, ())]
    places = Places()
    run_tasks(trials, places)
    assert places.most == 1 and places.ran == [one.step.name, other.step.name]


def test_without_ray_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"^lit-eve sweep needs Ray: pip install 'lit-eve\[sweeps\]'$"):
        Placement(Resources())


def test_trials_may_come_and_go(tmp_path: Path) -> None:
    made = [chain(tmp_path, f"sample_{number}", 0, "1_a", "2_b") for number in range(4)]
    waiting = list(made)

    def more(state: State) -> list[Trial]:
        return [waiting.pop(0)] if waiting else []

    def prune(state: State) -> list[Trial]:
        return [trial for trial in state.trials if trial.arm.name == "sample_1" and state.of(trial) == "running"]

    places = Places()
    state = run_tasks([], places, more=more, prune=prune)
    assert [state.of(trial) for trial in made] == ["finished", "pruned", "finished", "finished"]
    assert not state.failed and not made[1].is_done and places.cancelled


def test_the_table_of_a_terminal_says_how_each_trial_stands(tmp_path: Path) -> None:
    from rich.console import Console

    arms = ("without", "an_arm_with_a_long_name_that_is_not_cut_off")
    trials = [chain(tmp_path, arm, seed, "ground", "2_pretrain", shared=["ground"]) for seed in range(10) for arm in arms]
    state = run_tasks(trials[:1], Places())
    state = State(trials, set(state.done), stopped={trials[5].name})
    state.failed[trials[1].tasks["2_pretrain"].name] = "broken"
    for trial in trials[2:4]:
        task = trial.tasks["ground"] if trial is trials[2] else trial.tasks["2_pretrain"]
        state.running[task.name] = 0.0
    task.log.parent.mkdir(parents=True, exist_ok=True)
    task.log.write_text("step 100/800 loss 1\rstep 200/800 loss 1\n")
    console = Console(record=True, width=60)
    console.print(picture(state, 2))
    header, *lines = [" ".join(line.split()) for line in console.export_text().splitlines()]
    assert header == "arm / seed 0 1 2 3 4 5 6 7 8 9"
    assert lines[0] == "without ✓ ▸ · · · · · · · ·"
    assert lines[1] == "an_arm_with_a_long_name_that_i ✗ ▸ – · · · · · · ·" and lines[2] == "s_not_cut_off"
    below = " ".join(lines[3:])
    assert below.startswith(
        f"▸ without/seed_1 ground ▸ {trials[3].name} 2_pretrain 25% 1 of 20 trials finished, 1 failed, 1 pruned"
    )


def test_a_line_for_each_trial_that_ends(tmp_path: Path) -> None:
    from rich.console import Console

    console = Console(record=True, width=200)
    lines = Lines(console)
    run_tasks([chain(tmp_path, "x", 0, "1_a"), chain(tmp_path, "y", 0, "1_b")], Places(fails=["1_b"]), lambda s: lines(s, 2))
    text = console.export_text().splitlines()
    assert [line.split(" (")[0] for line in text] == ["x/seed_0 finished", "y/seed_0 failed"]
