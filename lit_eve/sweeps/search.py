"""A search instead of arms: Optuna draws settings, trials that fall behind are stopped.

    search:
      2_pretrain.model.lr: {low: 1.0e-4, high: 1.0e-2, log: true}
      1_prealign.model.patch_embedding.width: {choices: [64, 96, 128]}

Optuna keeps what it drew in a file of its own in the folder of the sweep. A search that was killed goes on with the samples
that were begun, and draws no more than were asked for. What is minimised, or maximised, is the first metric of the file. A
sample is stopped when the validation loss of its last stage is worse than the median of the others at as many validations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lit_eve.errors import ConfigError
from lit_eve.sweeps.ablation import Ablation, Arm
from lit_eve.sweeps.gathering import gather, running_curve
from lit_eve.sweeps.running import State
from lit_eve.sweeps.sweep import Sweep, file_and_key
from lit_eve.sweeps.trials import Trial, make_trials

if TYPE_CHECKING:
    import optuna

FILE = "optuna.log"
PRUNED_BY = "val/language_loss"
_KEYS = ("low", "high", "log", "choices", "step")


def check_search(ablation: Ablation) -> None:
    """Raise ConfigError if the file says nothing that could be sampled, or Optuna is not installed."""
    _optuna()
    if ablation.equal != "steps":
        raise ConfigError(f"{ablation.path}: samples are not made equal, and equal is {ablation.equal!r}: leave out --sample")
    if not ablation.search:
        raise ConfigError(f"{ablation.path}: --sample needs search: settings with low and high, or choices")
    for key, space in ablation.search.items():
        _check_space(f"{ablation.path}: search.{key}", space)


class Search:
    """Samples of a sweep, as trials.

    Args:
        sweep: whose reference arm is changed; each sample runs with its first seed.
        count: how many samples in all.
    """

    def __init__(self, sweep: Sweep, count: int) -> None:
        optuna = _optuna()
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sweep, self.count, self.metric = sweep, count, sweep.ablation.metrics[0]
        sweep.output.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(sweep.output / FILE))),
            study_name=sweep.ablation.name,
            direction="maximize" if self.metric.better == "higher" else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0),
            load_if_exists=True,
        )
        self.study.sampler = optuna.samplers.TPESampler(seed=len(self.study.trials))  # one that goes on draws nothing twice
        self.open: dict[str, optuna.Trial] = {}
        self.begun = self._begin_again()

    def _begin_again(self) -> list[Trial]:
        """Samples that an earlier call drew and did not stop: all are trials, those that have no result are still open."""
        optuna = _optuna()
        trials = []
        for frozen in self.study.trials:
            if frozen.state == optuna.trial.TrialState.PRUNED:
                continue
            trial = self._trial(frozen.number, frozen.params)
            trials.append(trial)
            if frozen.state == optuna.trial.TrialState.RUNNING:
                self.open[trial.name] = optuna.Trial(self.study, frozen._trial_id)
        return trials

    def more(self, state: State) -> Iterator[Trial]:
        """What to run next: what was begun before, then one new sample."""
        self._tell(state)
        if self.begun:
            yield from self.begun
            self.begun = []
        elif len(self.study.trials) < self.count:
            drawn = self.study.ask()
            params = {key: _draw(drawn, key, space) for key, space in self.sweep.ablation.search.items()}
            trial = self._trial(drawn.number, params)
            self.open[trial.name] = drawn
            yield trial

    def prune(self, state: State) -> Iterator[Trial]:
        """Samples that are worse than the median."""
        self._tell(state)
        for trial in state.trials:
            if trial.name in self.open and state.of(trial) == "running":
                drawn = self.open[trial.name]
                sign = 1 if self.study.direction.name == "MINIMIZE" else -1
                for place, value in running_curve(trial, PRUNED_BY):
                    drawn.report(sign * value, place)
                if drawn.should_prune():
                    self._end(trial.name, None, "PRUNED")
                    yield trial

    def _tell(self, state: State) -> None:
        """Tell Optuna what has ended."""
        for trial in state.trials:
            if trial.name not in self.open:
                continue
            now = state.of(trial)
            if now == "finished":
                metrics = gather([trial])[0].metrics
                if self.metric.name not in metrics:
                    raise ConfigError(f"no trial wrote the metric {self.metric.name!r}; there are {', '.join(sorted(metrics))}")
                self._end(trial.name, metrics[self.metric.name], "COMPLETE")
            elif now == "failed":
                self._end(trial.name, None, "FAIL")

    def _end(self, name: str, value: float | None, how: str) -> None:
        state = _optuna().trial.TrialState[how]
        self.study.tell(self.open.pop(name), value, state=state)

    def _trial(self, number: int, params: Mapping[str, Any]) -> Trial:
        ablation = self.sweep.ablation
        reference = ablation.arm(ablation.reference)
        changes = {file: dict(settings) for file, settings in reference.changes.items()}
        for key, value in params.items():
            file, setting = file_and_key(key)
            changes.setdefault(file, {})[setting] = value
        arm = Arm(f"sample_{number:04d}", changes, reference.skipped, reference.seed_offset)
        one = replace(ablation, arms=(arm,), reference=arm.name, seeds=ablation.seeds[:1])
        return make_trials(one, self.sweep.store, self.sweep.recipe, None)[0]


def _draw(drawn: optuna.Trial, key: str, space: Mapping[str, Any]) -> Any:
    if "choices" in space:
        return drawn.suggest_categorical(key, space["choices"])
    suggest = drawn.suggest_int if all(isinstance(space[end], int) for end in ("low", "high")) else drawn.suggest_float
    options = {name: space[name] for name in ("log", "step") if name in space}
    return suggest(key, space["low"], space["high"], **options)


def _check_space(key: str, space: Any) -> None:
    if not isinstance(space, dict) or (unknown := set(space) - set(_KEYS)):
        named = f"; {sorted(unknown)[0]!r} is neither" if isinstance(space, dict) else ""
        raise ConfigError(f"{key} takes choices, or low and high, and log or step{named}")
    if "choices" in space:
        if not isinstance(space["choices"], list) or len(space["choices"]) < 2:
            raise ConfigError(f"{key}.choices must be a list of at least two values")
        return
    ends = [space.get(end) for end in ("low", "high")]
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends) or ends[0] >= ends[1]:
        raise ConfigError(f"{key} needs numbers low and high, the larger one last, got {ends[0]!r} and {ends[1]!r}")
    if space.get("log") and ends[0] <= 0:
        raise ConfigError(f"{key}: with log, low must be above 0, got {ends[0]!r}")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("--sample needs Optuna: pip install 'lit-eve[sweeps]'") from error
    return optuna
