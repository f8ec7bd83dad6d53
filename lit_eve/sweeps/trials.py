"""Arms x seeds become trials, and trials become tasks: processes that are run once each, in folders of their own.

    ground -> 1_prealign -> 2_pretrain -> evaluation

A task is named after what comes out of it: its settings, and the tasks before it. Tasks that are the same for several arms
have one name, so they are run once and shared; tasks that differ have two folders. A file that is changed later finds again
what of it is made.

    STORE/seed_0/steps/             a small file per task: its settings, its time, whether it is done
    STORE/seed_0/2_pretrain-1f0c.../    a run folder of train.py, or the world and what is measured in it
    OUTPUT/trials/ARM/seed_0/        links to the folders of its tasks

Sweeps with the same store share what is the same for them, such as the recipe that each of them changes.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_eve.errors import ConfigError
from lit_eve.nano.ground import SHARED, check_ground
from lit_eve.nano.seeds import SEED_KEYS
from lit_eve.nano.steps import Journal, Step
from lit_eve.sweeps.ablation import Ablation, Arm
from lit_eve.sweeps.recipe import RUN, SEED, ArmStage, Recipe, arguments_of

GROUND, EVALUATION = "ground", "evaluation"
WORK = (sys.executable, "-m", "lit_eve.sweeps.work")
TRAIN = (sys.executable, "-m", "lit_eve.training.cli", "fit")


@dataclass(frozen=True)
class Task:
    """One process, whose result several trials may share."""

    kind: str
    """The name of a stage, ``ground`` or ``evaluation``."""
    seed: int
    store: Path
    """Folder of all that is run."""
    settings: Mapping[str, Any]
    """What decides what comes out of it, beside the tasks before it."""
    after: tuple[Task, ...] = ()
    """Tasks whose folders it reads."""
    waits_for: tuple[Task, ...] = ()
    """Tasks that it may borrow from, so that it is not run beside them."""
    command: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def step(self) -> Step:
        """What the journal keeps of it."""
        before = tuple(task.step for task in self.after)
        digest = Step("", "", Path(), self.settings, _nothing, before).digest
        name = f"{self.kind}-{digest}"
        return Step(name, self.kind, self.home / name, self.settings, _nothing, before)

    @property
    def home(self) -> Path:
        """Folder of all tasks with this seed."""
        return self.store / f"seed_{self.seed}"

    @property
    def name(self) -> str:
        """One name for one result: ``seed_0/2_pretrain-1f0c...``."""
        return f"{self.home.name}/{self.step.name}"

    @property
    def folder(self) -> Path:
        """What it writes to."""
        return self.step.output

    @property
    def journal(self) -> Journal:
        """Where its state is kept."""
        return Journal(self.home / "steps")

    @property
    def is_done(self) -> bool:
        """Whether it was run to its end."""
        return self.journal.is_done(self.step)

    @property
    def log(self) -> Path:
        """What its process prints."""
        return self.home / "logs" / f"{self.step.name}.txt"


@dataclass(frozen=True)
class Trial:
    """An arm with a seed."""

    arm: Arm
    seed: int
    tasks: Mapping[str, Task]
    """By kind, in the order in which they are run."""
    stages: Sequence[ArmStage]

    @property
    def name(self) -> str:
        """``ARM/seed_0``."""
        return f"{self.arm.name}/seed_{self.seed}"

    @property
    def stage_tasks(self) -> list[Task]:
        """Those that train."""
        return [self.tasks[stage.name] for stage in self.stages]

    @property
    def is_done(self) -> bool:
        """Whether all of it was run to the end."""
        return all(task.is_done for task in self.tasks.values())


def make_trials(
    ablation: Ablation, store: Path, recipe: Recipe, scaled: Mapping[str, Mapping[str, int]] | None = None
) -> list[Trial]:
    """All trials, those of the first seed in front.

    Args:
        store: folder of all that is run, absolute.
        scaled: by arm: steps of stages that make arms equal.

    Raises:
        ConfigError: an arm cannot be run, or two arms are the same.
    """
    scaled = scaled or {}
    _check_names(ablation, recipe)
    stages = {arm.name: recipe.arm_stages(arm, scaled.get(arm.name)) for arm in ablation.arms}
    trials = []
    for seed in ablation.seeds:
        reference = _ground(ablation.arm(ablation.reference), seed, store, recipe, stages, ())
        for arm in ablation.arms:
            trials.append(_trial(arm, seed, store, recipe, stages, reference))
    seen: dict[str, str] = {}
    for trial in trials[: len(ablation.arms)]:
        last = list(trial.tasks.values())[-1].name
        if (other := seen.setdefault(last, trial.arm.name)) != trial.arm.name:
            raise ConfigError(
                f"{ablation.path}: the arms {other!r} and {trial.arm.name!r} are the same; to measure how far equal arms "
                "differ by chance, give one of them a seed_offset"
            )
    return trials


def tasks_of(trials: Sequence[Trial]) -> list[Task]:
    """All tasks, each once, in an order in which they can be run."""
    found: dict[str, Task] = {}
    for trial in trials:
        for task in trial.tasks.values():
            found.setdefault(task.name, task)
    return list(found.values())


def _check_names(ablation: Ablation, recipe: Recipe) -> None:
    known = [stage.name for stage in recipe.stages]
    ground = [] if recipe.ground is None else list(SHARED.values())
    for arm in ablation.arms:
        for file in (*arm.changes, *arm.skipped):
            if file not in (*known, *ground, "stages"):
                raise ConfigError(
                    f"{ablation.path}: arm {arm.name!r} changes {file!r}; {recipe.folder} has {', '.join([*known, *ground])}"
                )
            if file in ground:
                try:
                    check_ground(recipe.ground, file, arm.changes[file])
                except ConfigError as error:
                    raise ConfigError(f"arm {arm.name!r}, {file}: {error}") from error
    if ablation.scaled is not None and ablation.scaled not in known:
        raise ConfigError(f"{ablation.path}: scaled is {ablation.scaled!r}; the stages are {', '.join(known)}")


def _ground(
    arm: Arm, seed: int, store: Path, recipe: Recipe, stages: Mapping[str, Sequence[ArmStage]], waits_for: tuple[Task, ...]
) -> Task | None:
    """World, language model and teacher of a trial; None where the recipe is no miniature's."""
    if recipe.ground is None:
        return None
    settings: dict[str, Any] = {}
    for stem in SHARED.values():
        content = yaml.safe_load((recipe.ground / f"{stem}.yaml").read_text("utf-8")) | {SEED_KEYS[stem]: seed}
        for key, value in arm.changes.get(stem, {}).items():
            _set(content, key, value)
        settings[stem] = content
    settings["with_teacher"] = recipe.sees_teacher or any(stage.sees_teacher for stage in stages[arm.name])
    task = Task(GROUND, seed, store, settings, (), waits_for)
    if waits_for and task.name == waits_for[0].name:
        return waits_for[0]
    return replace(task, command=(*WORK, GROUND, str(task.folder), json.dumps(settings)))


def _trial(
    arm: Arm, seed: int, store: Path, recipe: Recipe, stages: Mapping[str, Sequence[ArmStage]], reference: Task | None
) -> Trial:
    ground = _ground(arm, seed, store, recipe, stages, () if reference is None else (reference,))
    tasks: dict[str, Task] = {} if ground is None else {GROUND: ground}
    folders: dict[str, Path] = {} if ground is None else {str(Path(stages[arm.name][0].folder).parent): ground.folder}
    before: tuple[Task, ...] = tuple(tasks.values())
    for stage in stages[arm.name]:
        settings = {"files": stage.stage.files, "changes": dict(stage.changes), SEED: seed + arm.seed_offset}
        task = Task(stage.name, seed, store, settings, before)
        folders[stage.folder] = task.folder
        options = {**stage.changes, **stage.moved(folders), SEED: seed + arm.seed_offset, RUN: str(task.folder)}
        task = replace(task, command=(*TRAIN, "--config", str(stage.stage.path), *arguments_of(options)))
        tasks[stage.name] = task
        before = (task,) if ground is None else (ground, task)
    if ground is not None:
        tasks[EVALUATION] = _evaluation(seed, store, stages[arm.name], tasks)
    return Trial(arm, seed, tasks, stages[arm.name])


def _evaluation(seed: int, store: Path, stages: Sequence[ArmStage], tasks: Mapping[str, Task]) -> Task:
    captioners = [stage.name for stage in stages if stage.learns_captions]
    answerer = None if stages[-1].learns_captions else stages[-1].name
    settings = {"captioner": captioners[-1] if captioners else None, "answerer": answerer}
    read = [tasks[name] for name in dict.fromkeys((GROUND, *filter(None, settings.values())))]
    task = Task(EVALUATION, seed, store, settings, tuple(read))
    folders = {key: name and str(tasks[name].folder) for key, name in settings.items()}
    data = {"data": str(tasks[GROUND].folder / "data"), **folders}
    return replace(task, command=(*WORK, EVALUATION, str(task.folder), json.dumps(data)))


def link_trials(output: Path, trials: Sequence[Trial]) -> None:
    """Make ``trials/ARM/seed_N`` with a link to the folder of each task."""
    for trial in trials:
        folder = output / "trials" / trial.name
        folder.mkdir(parents=True, exist_ok=True)
        for kind, task in trial.tasks.items():
            link, target = folder / kind, os.path.relpath(task.folder, folder)
            if link.is_symlink() and os.readlink(link) == target:
                continue
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for part in parents:
        settings = settings.setdefault(part, {})
    settings[last] = value


def _nothing() -> None:
    """What a step of the journal does here: its process does it."""
