"""Intervals beside what the statistics books say, and over the parts of every metric."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.intervals import confidence_interval, wilson
from lit_eve.evaluation.metrics import SEEDBench, SEEDBenchReference
from lit_eve.evaluation.metrics.base import Parts


def share_of(right: int, count: int) -> Parts:
    columns = np.stack([np.arange(count) < right, np.ones(count)], axis=1).astype(float)
    return Parts(columns, lambda sums: 100 * sums[:, 0] / sums[:, 1])


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_parts_of_every_metric_add_up_to_its_headline(name):
    metric, ids, answers = import_module(f"tests.evaluation.metrics.test_{name}").case()
    metric.update(ids, answers)
    parts, score = metric.parts(), metric.compute()[metric.headline]
    assert parts.combine(parts.columns.sum(0, keepdims=True))[0] == pytest.approx(score, abs=1e-9)
    low, high = confidence_interval(parts, range(len(metric.references)))
    assert 0 <= low < score < high <= parts.best


@pytest.mark.parametrize(("right", "count"), [(30, 100), (300, 400)])
def test_questions_of_their_own_have_the_interval_of_a_share(right, count):
    low, high = confidence_interval(share_of(right, count), range(count))
    share = right / count
    half = 100 * 1.96 * (share * (1 - share) / count) ** 0.5
    assert (low, high) == pytest.approx((100 * share - half, 100 * share + half), abs=0.15 * half)


def test_questions_about_one_image_count_together():
    """Forty images with ten questions each, all of them right or all wrong, tell as much as forty questions."""
    alone = confidence_interval(share_of(200, 400), range(400))
    together = confidence_interval(share_of(200, 400), [number // 10 for number in range(400)])
    assert together[1] - together[0] == pytest.approx(10**0.5 * (alone[1] - alone[0]), rel=0.1)


def test_where_all_is_right_the_interval_is_wilsons():
    assert wilson(1.0, 10) == pytest.approx((72.2467, 100.0), abs=1e-3)  # Brown, Cai and DasGupta 2001
    assert wilson(0.5, 10) == pytest.approx((23.6593, 76.3407), abs=1e-3)
    metric = SEEDBench({number: SEEDBenchReference("Scene", "A") for number in range(10)})
    metric.update(range(10), ["A"] * 10)
    assert confidence_interval(metric.parts(), range(10)) == pytest.approx(wilson(1.0, 10))
    assert confidence_interval(metric.parts(), [0] * 10) is None  # one image tells nothing about others


def test_strata_keep_their_sizes():
    """All answers of one task are right, all of the other wrong: the sum of both is certain but for what Wilson allows."""
    columns = np.array([[1.0, 1, 0, 0]] * 20 + [[0, 0, 0, 1.0]] * 20)
    parts = Parts(columns, lambda sums: 100 * sums[:, 0] / sums[:, 1] + 100 * sums[:, 2] / sums[:, 3], 200.0)
    strata = parts._replace(strata=["a"] * 20 + ["b"] * 20)
    low, high = confidence_interval(strata, range(40))
    assert low == pytest.approx(200 * wilson(0.5, 40, 1.0)[0]) and high == pytest.approx(200 * wilson(0.5, 40, 1.0)[1])


def test_a_metric_that_does_not_tell_its_parts_has_no_interval():
    class Mine(SEEDBench):
        def shares(self, values, answered):
            return super(SEEDBench, self).shares(values, answered)

    assert confidence_interval(Mine({}).parts(), []) is None
