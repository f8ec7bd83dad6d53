"""The arms of an ablation beside its reference, metric by metric: what tables, pictures and verdicts are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from lit_eve.errors import ConfigError
from lit_eve.sweeps.ablation import Ablation, Metric
from lit_eve.sweeps.report.results import Trial
from lit_eve.sweeps.report.statistics import LEVEL, Difference, holm, paired_difference, seeds_to_resolve
from lit_eve.sweeps.report.verdict import Verdict, verdict


@dataclass(frozen=True)
class Row:
    """One arm and one metric."""

    arm: str
    reference: str
    """The arm that it is compared with."""
    values: Mapping[int, float]
    """By seed, finite; empty: no trial of the arm wrote the metric."""
    difference: Difference | None = None
    """Arm minus its reference, in the metric's unit; None: the reference itself, or no seed that both have."""
    adjusted_p: float | None = None
    """Holm's, over the arms of the metric."""
    needed: int | None = None
    """Seeds that resolve the metric's difference with a power of 0.8, at the level of Holm's first step, if differences vary
    as these do; None: not known, or more than 10,000."""
    verdict: Verdict | None = None
    """None: the reference."""
    sign_of_paper: int = 0
    """1: better than its reference in the paper; -1: worse; 0: not said."""


@dataclass(frozen=True)
class Comparison:
    """One metric of all arms, in the order of the file."""

    metric: Metric
    reference: str
    rows: tuple[Row, ...]
    not_finite: tuple[str, ...]
    """Trials whose value is no finite number; they count as missing."""
    first_level: float
    """What Holm compares the smallest p with: 0.05 by the number of tests."""

    def gain(self, row: Row) -> Difference | None:
        """The difference of a row, positive where the arm is better."""
        return None if row.difference is None else row.difference.times(self.metric.sign)


def in_order(ablation: Ablation, trials: Sequence[Trial]) -> list[Trial]:
    """Trials in the order of the arms, then of the seeds.

    Raises:
        ConfigError: a trial is there twice, or of an arm that the file does not have.
    """
    names = [arm.name for arm in ablation.arms]
    seen: set[str] = set()
    for trial in trials:
        if trial.arm not in names:
            raise ConfigError(
                f"{ablation.path}: {trial.name} is a trial of no arm of the file; its arms are {', '.join(names)}"
            )
        if trial.name in seen:
            raise ConfigError(f"{ablation.path}: the trial {trial.name} is there twice")
        seen.add(trial.name)
    return sorted(trials, key=lambda trial: (names.index(trial.arm), trial.seed))


def compare(ablation: Ablation, trials: Sequence[Trial]) -> list[Comparison]:
    """Compare each arm with its reference, by every metric of the file; trials may be missing.

    Raises:
        ConfigError: as of :func:`in_order`; or no trial wrote a metric of the file.
    """
    trials = in_order(ablation, trials)
    return [_compare(ablation, metric, trials) for metric in ablation.metrics]


def _compare(ablation: Ablation, metric: Metric, trials: Sequence[Trial]) -> Comparison:
    if trials and not any(metric.name in trial.metrics for trial in trials):
        there = sorted({name for trial in trials for name in trial.metrics})
        raise ConfigError(
            f"{ablation.path}: metrics: no trial wrote {metric.name!r}; there are {', '.join(there) or 'no metrics at all'}"
        )
    values: dict[str, dict[int, float]] = {arm.name: {} for arm in ablation.arms}
    not_finite = []
    for trial in trials:
        if metric.name not in trial.metrics:
            continue
        if isfinite(trial.metrics[metric.name]):
            values[trial.arm][trial.seed] = trial.metrics[metric.name]
        else:
            not_finite.append(trial.name)
    others = [name for name in values if name != ablation.reference]
    against = {name: ablation.reference_of(name) for name in others}
    differences = {name: paired_difference(values[name], values[against[name]]) for name in others}
    ps = [difference.p if difference else None for difference in differences.values()]
    level = LEVEL / max(1, len(ps) - ps.count(None))
    rows = {ablation.reference: Row(ablation.reference, ablation.reference, values[ablation.reference])}
    for (name, difference), p in zip(differences.items(), holm(ps), strict=True):
        gain, sign = difference and difference.times(metric.sign), ablation.paper.sign(name)
        said = verdict(gain, p, sign, against[name])
        rows[name] = Row(name, against[name], values[name], difference, p, _needed(difference, metric, level), said, sign)
    return Comparison(metric, ablation.reference, tuple(rows[name] for name in values), tuple(not_finite), level)


def _needed(difference: Difference | None, metric: Metric, level: float) -> int | None:
    if difference is None or not difference.deviation or metric.difference is None:  # equal differences tell of no spread
        return None
    return seeds_to_resolve(difference.deviation, metric.difference, level=level)
