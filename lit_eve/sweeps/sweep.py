"""A sweep from beginning to end: read, check, run what is not done, say what came out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from lit_eve.errors import ConfigError, LitEveError, StageError
from lit_eve.sweeps.ablation import ALL, Ablation
from lit_eve.sweeps.costs import StageCost, equal_steps, plan_stage
from lit_eve.sweeps.gathering import seconds_per_step
from lit_eve.sweeps.ledger import Ledger
from lit_eve.sweeps.recipe import Recipe
from lit_eve.sweeps.running import Places, State, run_tasks
from lit_eve.sweeps.trials import EVALUATION, GROUND, Trial, link_trials, make_trials

CALIBRATION = 120
"""Steps of the short runs that measure what a step takes."""


class Sweep:
    """An ablation in a folder.

    Args:
        ablation: what is run.
        output: where its ledger and report are written.
        keep: whether to go on where the file has changed since the folder was begun.
        store: where all that is run lies, so that sweeps can share it; default: ``output``.

    Raises:
        ConfigError: an arm cannot be run, or the folder belongs to something else; raised before anything is run.
    """

    def __init__(self, ablation: Ablation, output: Path, keep: bool = False, store: Path | None = None) -> None:
        self.ablation, self.output = ablation, output.absolute()
        self.store = (store or output).absolute()
        self.recipe = Recipe.of(ablation)
        self._cannot_be_planned: set[str] = set()
        self.ledger = Ledger(self.output)
        different = self.ledger.take(ablation, self.recipe)
        self.trials = make_trials(ablation, self.store, self.recipe, self.ledger.scaled)
        if different and not keep:
            kept = sum(trial.is_done for trial in self.trials)
            raise ConfigError(
                f"{output} was begun with another version of {ablation.path} ({'; '.join(different[:5])}). --keep goes on with "
                f"this one: of {len(self.trials)} trials, {kept} are finished and not affected, {len(self.trials) - kept} are "
                "run. --output names another folder"
            )

    def run(self, places: Places, on_change: Callable[[State], None] = lambda state: None, **more: Any) -> State:
        """Run what is not done; see :func:`~lit_eve.sweeps.running.run_tasks`."""
        self.ledger.write(self.trials, {})
        self._check_rules()
        others = {arm.name for arm in self.ablation.arms} - {self.ablation.reference}
        if self.ablation.equal != "steps" and others - self.ledger.scaled.keys():
            self._make_equal(places, on_change)
        written: tuple[int, ...] = ()

        def changed(state: State) -> None:
            nonlocal written
            if (now := (len(state.trials), len(state.done), len(state.failed))) != written:
                written = now
                self._check_rules()
                link_trials(self.output, state.trials)
                self.ledger.write(state.trials, state.failed)
            on_change(state)

        return run_tasks(self.trials, places, changed, **more)

    @property
    def as_run(self) -> Ablation:
        """The ablation with the arms that its trials have: those of the file, or the samples of a search."""
        arms = {trial.arm.name: trial.arm for trial in self.trials}
        return replace(self.ablation, arms=tuple(arms.values()))

    def costs(self, **gpus: Any) -> dict[str, list[tuple[str, StageCost]]]:
        """What the stages of each arm cost, by plan; of the first seed. Arms whose ground is not made yet are left out.

        Raises:
            ConfigError: a stage cannot be planned.
        """
        return {trial.arm.name: self._cost(trial, **gpus) for trial in self._to_plan}

    def flops_per_step(self) -> dict[tuple[str, str], float]:
        """FLOPs of a step of each stage, by arm and stage, as planned; arms that cannot be planned are left out."""
        for trial in self._to_plan:
            with suppress(LitEveError):
                self._plan(trial)
        return {(arm, stage): flops for arm, stages in self._planned.items() for stage, flops in stages.items()}

    def _check_rules(self) -> None:
        """Raise ConfigError where rules of a stage do not suit the model of an arm, as soon as that can be planned.

        Without this, rules of the last stage would fail after those before it have been trained.
        """
        for trial in self._to_plan:
            if trial.arm.name not in self._cannot_be_planned:
                try:
                    self._plan(trial)
                except ConfigError as error:  # what cannot be planned can still be trained
                    self._cannot_be_planned.add(trial.arm.name)
                    if isinstance(error.__cause__, StageError):
                        raise ConfigError(f"{self.ablation.path}: arm {trial.arm.name!r}: {error}") from error

    @property
    def _planned(self) -> dict[str, dict[str, float]]:
        """FLOPs of a step, by arm and stage, that the ledger keeps."""
        return self.ledger.content.setdefault("flops_per_step", {})

    def _plan(self, trial: Trial) -> None:
        if trial.arm.name not in self._planned:
            self._planned[trial.arm.name] = {name: cost.flops_per_step for name, cost in self._cost(trial)}

    @property
    def _to_plan(self) -> list[Trial]:
        """A trial of each arm whose ground is there, or needs none."""
        first = [trial for trial in self.trials if trial.seed == self.ablation.seeds[0]]
        return [trial for trial in first if GROUND not in trial.tasks or trial.tasks[GROUND].is_done]

    def _cost(self, trial: Trial, **gpus: Any) -> list[tuple[str, StageCost]]:
        return [(stage.name, plan_stage(stage, self._folders(trial), **gpus)) for stage in trial.stages]

    def _folders(self, trial: Trial) -> dict[str, Path]:
        """The ground of a trial in the place of the recipe's, where it is made."""
        ground = trial.tasks.get(GROUND)
        if ground is None or not ground.is_done:
            return {}
        return {str(Path(trial.stages[0].folder).parent): ground.folder}

    def _make_equal(self, places: Places, on_change: Callable[[State], None]) -> None:
        """Find the steps with which arms cost the same; the first seed's ground is made for that."""
        first = [trial for trial in self.trials if trial.seed == self.ablation.seeds[0]]
        grounds = [replace(trial, tasks={GROUND: trial.tasks[GROUND]}) for trial in first if GROUND in trial.tasks]
        state = run_tasks(grounds, places, on_change)
        if state.failed:
            raise ConfigError(f"{self.ablation.path}: arms cannot be made equal: {next(iter(state.failed.values()))}")
        planned = self.costs()
        if self.ablation.equal == "flops":
            each = {(arm, name): cost.flops_per_step for arm, stages in planned.items() for name, cost in stages}
        else:
            each = self._seconds_per_step(first, places, on_change)
        costs = {arm: [(name, cost.steps, each[arm, name]) for name, cost in stages] for arm, stages in planned.items()}
        # Arms that were made equal before keep their steps: seconds, measured again, would differ a little.
        scaled = equal_steps(self.ablation, costs) | self.ledger.scaled
        self.trials = make_trials(self.ablation, self.store, self.recipe, scaled)
        self.ledger.write(self.trials, {}, scaled)

    def _seconds_per_step(
        self, first: Sequence[Trial], places: Places, on_change: Callable[[State], None]
    ) -> dict[tuple[str, str], float]:
        """Seconds that a step of each stage takes: short trials, one task at a time."""
        scaled = {trial.arm.name: {stage.name: CALIBRATION for stage in trial.stages} for trial in first}
        short = replace(self.ablation, seeds=self.ablation.seeds[:1])
        trials = make_trials(short, self.store, self.recipe, scaled)
        trials = [replace(one, tasks={kind: task for kind, task in one.tasks.items() if kind != EVALUATION}) for one in trials]
        state = run_tasks(trials, _OneAtATime(places), on_change)
        if state.failed:
            raise ConfigError(f"{self.ablation.path}: arms cannot be made equal: {next(iter(state.failed.values()))}")
        return {(trial.arm.name, task.kind): seconds_per_step(task) for trial in trials for task in trial.stage_tasks}


class _OneAtATime:
    """Places of which only one is used."""

    def __init__(self, places: Places) -> None:
        self.resources, self.submit, self.ended, self.cancel = places.resources, places.submit, places.ended, places.cancel
        self.capacity = 1


def with_grid(ablation: Ablation, grid: Iterable[str]) -> Ablation:
    """The ablation with arms for every combination of values, each on top of the reference arm.

    Args:
        grid: ``KEY=VALUE,VALUE`` each: a setting of ``train.py`` for all stages, or of one: ``2_pretrain.model.lr=1e-3,3e-3``.

    Raises:
        ConfigError: one is not of this form.
    """
    axes = [_axis(ablation, text) for text in grid]
    reference = ablation.arm(ablation.reference)
    arms = [reference]
    for values in product(*(values for _, _, _, values in axes)):
        changes = {file: dict(settings) for file, settings in reference.changes.items()}
        names = []
        for (title, file, key, _), value in zip(axes, values, strict=True):
            changes.setdefault(file, {})[key] = value
            names.append(f"{title}={_written(value)}")
        arms.append(replace(reference, name=",".join(names), changes=changes))
    return replace(ablation, arms=tuple(arms), paper=replace(ablation.paper, better=(), worse=()))


def _axis(ablation: Ablation, text: str) -> tuple[str, str, str, list[Any]]:
    title, equals, values = text.partition("=")
    if not equals or not title or not values:
        raise ConfigError(f"--grid takes KEY=VALUE,VALUE, as in model.lr=1e-3,3e-3, got {text!r}")
    try:
        found = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError as error:
        raise ConfigError(f"--grid {title}: {' '.join(str(error).split())}") from error
    found = [_number(value) for value in found]
    file, key = file_and_key(title)
    return title, file, key, found


def file_and_key(title: str) -> tuple[str, str]:
    """``2_pretrain.model.lr`` is a setting of one file, ``model.lr`` one of all stages."""
    file, _, key = title.partition(".")
    return (file, key) if file[:1].isdigit() or file == "world" else (ALL, title)


def _number(value: Any) -> Any:
    """YAML takes 1e-3 for a word."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _written(value: Any) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.+" else "_" for letter in str(value))


def only(ablation: Ablation, names: Sequence[str] | None, seeds: int | None) -> Ablation:
    """The ablation with these arms, their references among them, and so many seeds.

    Raises:
        ConfigError: there is no such arm.
    """
    if names is not None:
        known = [arm.name for arm in ablation.arms]
        if unknown := [name for name in names if name not in known]:
            raise ConfigError(f"--only: there is no arm {unknown[0]!r}; the arms are {', '.join(known)}")
        wanted = {ablation.reference}
        for name in names:
            while name not in wanted:  # a reference may have one of its own
                wanted.add(name)
                name = ablation.reference_of(name)
        arms = tuple(arm for arm in ablation.arms if arm.name in wanted)
        ablation = replace(ablation, arms=arms)
    if seeds is not None:
        if seeds < 1:
            raise ConfigError(f"--seeds must be at least 1, got {seeds}")
        ablation = replace(ablation, seeds=tuple(range(seeds)))
    return ablation
