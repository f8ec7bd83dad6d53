"""What can be said of arms that were trained with the same seeds: paired differences, their intervals, and a rule for words.

A seed of a miniature has its own world, and some worlds are harder than others. Differences between two arms of one seed are
free of that, so everything here is paired.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from types import ModuleType
from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError
from lit_eve.sweeps.report.results import Answer

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.05  # of the tests; intervals are of 1 - LEVEL
MOST_SEEDS = 10_000
ROUNDING = 1e-12  # differences that are equal but for this share of the values are equal


@dataclass(frozen=True)
class Difference:
    """An arm minus the reference, over the seeds that both have."""

    n: int
    """Seeds that both have."""
    positive: int
    """Seeds in which the difference is above 0."""
    mean: float
    deviation: float | None = None
    """Standard deviation of the differences (n - 1); None: one seed."""
    interval: tuple[float, float] | None = None
    """95 %, of the mean, by Student's t; None: one seed, or all differences are equal."""
    p: float | None = None
    """Two-sided, of the paired t test; where all differences are equal, of the sign test; None: one seed."""
    differences: tuple[float, ...] = ()
    """By seed, in the order of the seeds."""

    def times(self, sign: int) -> Difference:
        """The same for metrics times ``sign`` (1 or -1): a gain, whichever direction of the metric is good."""
        if sign == 1:
            return self
        return replace(
            self,
            positive=sum(difference < 0 for difference in self.differences),
            mean=-self.mean,
            interval=None if self.interval is None else (-self.interval[1], -self.interval[0]),
            differences=tuple(-difference for difference in self.differences),
        )


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """The difference of two arms by seed; seeds that only one of them has do not count.

    Where all differences are equal, the t test would divide by zero and call two seeds that agree certain. The sign test takes
    its place: p is 2 / 2^n, as n coins show the same side, or 1 where the differences are 0. There is no interval.

    Args:
        values: of the arm, by seed; finite.
        reference: of the reference.

    Returns:
        None where no seed has both.

    Raises:
        ConfigError: scipy is not installed.
    """
    pairs = [(values[seed], reference[seed]) for seed in sorted(values.keys() & reference.keys())]
    if not pairs:
        return None
    differences = tuple(value - other for value, other in pairs)
    n, mean, positive = len(pairs), fmean(differences), sum(difference > 0 for difference in differences)
    if n == 1:
        return Difference(n, positive, mean, differences=differences)
    deviation = stdev(differences)
    if deviation <= ROUNDING * max(abs(value) for pair in pairs for value in pair):
        return Difference(n, positive, mean, 0.0, None, 2.0 ** (1 - n) if mean else 1.0, differences)
    t, error = scipy_stats().t, deviation / n**0.5
    reach = float(t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = float(2 * t.sf(abs(mean / error), n - 1))
    return Difference(n, positive, mean, deviation, (mean - reach, mean + reach), p, differences)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values (Holm 1979), in the order given: below 0.05 where Holm's procedure rejects at that level.

    Args:
        ps: of the tests that are made together. None: no test was made; it stays None, and does not count.
    """
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    greatest = 0.0
    for rank, (p, place) in enumerate(order):
        adjusted[place] = greatest = max(greatest, min(1.0, (len(order) - rank) * p))
    return adjusted


def seeds_to_resolve(deviation: float, difference: float, power: float = 0.8, level: float = LEVEL) -> int | None:
    """The fewest seeds with which a two-sided paired t test finds a true difference of that size, with that power.

    Exact, by the noncentral t distribution, for differences that are normally distributed.

    Args:
        deviation: standard deviation of the paired differences.
        difference: the true one; its sign does not matter.
        power: the probability of finding it.
        level: of the test.

    Returns:
        At least 2; None above 10,000.

    Raises:
        ConfigError: scipy is not installed.
        ValueError: a difference of 0, which no number of seeds resolves, or a deviation below 0.
    """
    if difference == 0 or deviation < 0:
        raise ValueError(f"difference must not be 0 and deviation not below 0, got {difference} and {deviation}")
    if deviation == 0:
        return 2
    stats, effect = scipy_stats(), abs(difference) / deviation

    def power_of(n: int) -> float:
        critical, shift = stats.t.ppf(1 - level / 2, n - 1), effect * n**0.5
        return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))

    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(counts, power, key=power_of)
    return counts[place] if place < len(counts) else None


@dataclass(frozen=True)
class QuestionDifference:
    """The difference in accuracy of an arm and the reference over the questions that both answered."""

    questions: int
    """Of all seeds."""
    images: int
    """Of all seeds: the clusters of the bootstrap."""
    accuracy: float
    """Of the arm, from 0 to 1."""
    mean: float
    """Of the arm minus that of the reference."""
    interval: tuple[float, float] | None
    """95 %; None: fewer than two images."""


def question_interval(
    arm: Mapping[int, Sequence[Answer]], reference: Mapping[int, Sequence[Answer]]
) -> QuestionDifference | None:
    """How far the difference in accuracy may lie from that over other questions: a bootstrap, those of an image together.

    A question is one of a seed: each seed of a miniature has images of its own, whatever their names. The interval tells of
    the choice of questions, with these trained models; :func:`paired_difference` tells of other seeds.

    Args:
        arm: answers by seed.
        reference: answers of the reference by seed.

    Returns:
        None where there is no question that both answered.
    """
    import numpy as np

    from lit_eve.evaluation.intervals import confidence_interval, wilson
    from lit_eve.evaluation.metrics.base import Parts

    others = {(seed, question): is_right for seed, answers in reference.items() for question, _, is_right in answers}
    pairs = [
        ((seed, image), is_right, others[seed, question])
        for seed, answers in arm.items()
        for question, image, is_right in answers
        if (seed, question) in others
    ]
    if not pairs:
        return None
    images = [image for image, _, _ in pairs]
    columns = np.array([(is_right, other, 1) for _, is_right, other in pairs], dtype=float)
    accuracy, of_reference = (float(mean) for mean in columns[:, :2].mean(axis=0))
    clusters = len(set(images))
    if clusters > 1 and (columns[:, 0] == columns[:, 1]).all():
        # No resample differs. Of images like these, at most this share has answers that do; all of them to one side.
        reach = wilson(0.0, clusters, 1.0)[1]
        interval = (-reach, reach)
    else:
        # From 0 to 2, as where all resamples are alike, the interval is Wilson's of a share, which is not negative.
        raised = Parts(columns, lambda sums: 1 + (sums[:, 0] - sums[:, 1]) / sums[:, 2], best=2.0)
        found = confidence_interval(raised, images)
        interval = None if found is None else (found[0] - 1, found[1] - 1)
    return QuestionDifference(len(pairs), clusters, accuracy, accuracy - of_reference, interval)


def scipy_stats() -> ModuleType:
    """``scipy.stats``, which belongs to an extra.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ConfigError("the statistics of a sweep need scipy: pip install 'lit-eve[sweeps]'") from error
    return stats


def at_common_steps(curves: Sequence[Sequence[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """The curves of several seeds at the same steps, so that they can be averaged.

    Worlds of other seeds fill other numbers of rows, so seeds are not tried at the same steps. Between two values of a seed,
    its curve is a straight line; before its first value and after its last one it has none.

    Args:
        curves: of each seed, (step, value).

    Returns:
        The steps of all, as far as every seed has a curve, (points,); values (seeds, points). Without such steps, of no points.
    """
    import numpy as np

    tables = [np.array(sorted(curve), dtype=float).reshape(-1, 2) for curve in curves]
    if not tables or not all(map(len, tables)):
        return np.empty(0), np.empty((len(tables), 0))
    steps = np.unique(np.concatenate([table[:, 0] for table in tables]))
    steps = steps[(steps >= max(table[0, 0] for table in tables)) & (steps <= min(table[-1, 0] for table in tables))]
    return steps, np.stack([np.interp(steps, *table.T) for table in tables])
