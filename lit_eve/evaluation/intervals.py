"""How far a score may lie from that of other questions of the same kind: 95 % intervals by a bootstrap over images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from lit_eve.evaluation.metrics.base import Parts

RESAMPLES = 2000
LEVEL = 0.95
Z = 1.959963984540054  # of the normal distribution at this level


def confidence_interval(parts: Parts | None, clusters: Sequence[Hashable], seed: int = 0) -> tuple[float, float] | None:
    """The percentile bootstrap: questions are drawn anew with replacement, those of one cluster together.

    Questions about one image share what the model sees in it. Drawn one by one they would pass for independent, and the
    interval would be too narrow; so would circular passes and MME's pairs. Strata (MME's tasks) keep their sizes.

    Where every cluster is alike, as if all answers are right, no resample differs; the interval is then Wilson's, of as many
    trials as there are clusters. It tells of the choice of questions alone, not of other seeds, prompts or judges.

    Args:
        parts: of the metric (:meth:`BenchmarkMetric.parts`); None: it does not tell them.
        clusters: of each question, what it counts together with: its image.
        seed: of the resamples.

    Returns:
        Lower and upper end, in the unit of the score; None without parts, or for less than two clusters.
    """
    if parts is None:
        return None
    strata = parts.strata if parts.strata is not None else [None] * len(clusters)
    places: dict[Hashable, int] = {}
    cluster_of = [places.setdefault(key, len(places)) for key in zip(strata, clusters, strict=True)]
    sums = np.zeros((len(places), parts.columns.shape[1]))
    np.add.at(sums, cluster_of, parts.columns)
    counted = sums.any(axis=1)
    stratum_of = np.array([hash(stratum) for stratum, _ in places])
    if counted.sum() < 2:
        return None
    rng = np.random.default_rng(seed)
    totals = np.zeros((RESAMPLES, sums.shape[1]))
    for stratum in dict.fromkeys(stratum_of[counted].tolist()):
        rows, counts = np.unique(sums[counted & (stratum_of == stratum)], axis=0, return_counts=True)
        totals += rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES) @ rows
    low, high = np.quantile(parts.combine(totals), [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return wilson(low / parts.best, int(counted.sum()), parts.best) if low == high else (low, high)


def wilson(share: float, trials: int, best: float = 100.0) -> tuple[float, float]:
    """Wilson's interval of a share of so many trials, times ``best``."""
    middle = (share + Z**2 / (2 * trials)) / (1 + Z**2 / trials)
    half = Z / (1 + Z**2 / trials) * np.sqrt(share * (1 - share) / trials + Z**2 / (4 * trials**2))
    return best * max(0.0, float(middle - half)), best * min(1.0, float(middle + half))
