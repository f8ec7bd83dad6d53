"""Statistics beside scipy, tables of the books, and simulation."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy import stats

from lit_eve.errors import ConfigError
from lit_eve.evaluation.intervals import wilson
from lit_eve.sweeps.report.results import Answer
from lit_eve.sweeps.report.statistics import holm, paired_difference, question_interval, seeds_to_resolve


def by_seed(values) -> dict[int, float]:
    return dict(enumerate(map(float, values)))


# ---- paired differences


def test_paired_difference_is_that_of_scipy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 40):
        values, reference = rng.normal(0.1, 1, n), rng.normal(0, 2, n)
        found, known = paired_difference(by_seed(values), by_seed(reference)), stats.ttest_rel(values, reference)
        assert (found.n, found.positive) == (n, (values > reference).sum())
        assert found.mean == pytest.approx(np.mean(values - reference))
        assert found.deviation == pytest.approx(np.std(values - reference, ddof=1))
        assert found.p == pytest.approx(known.pvalue, rel=1e-9)
        assert found.interval == pytest.approx(tuple(known.confidence_interval(0.95)), rel=1e-9)


def test_only_seeds_that_both_have_count():
    found = paired_difference({0: 1.0, 1: 2.0, 5: 9.0, 3: 4.0}, {3: 3.5, 1: 1.0, 0: 0.5, 7: -8.0})
    assert found.differences == (0.5, 1.0, 0.5) and found.n == 3
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({}, {0: 1.0}) is None


def test_one_seed_has_no_interval():
    found = paired_difference({4: 1.0}, {4: 0.75})
    assert (found.n, found.positive, found.mean) == (1, 1, 0.25)
    assert found.interval is found.p is found.deviation is None


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (5, 0.0625), (6, 0.03125)])
def test_equal_differences_have_the_p_of_the_sign_test(n, p):
    """0.3 - 0.1 and 1.3 - 1.1 differ in their last digit, which is no spread."""
    reference = {seed: 0.1 + seed for seed in range(n)}
    found = paired_difference({seed: 0.3 + seed for seed in range(n)}, reference)
    assert found.p == p == pytest.approx(stats.binomtest(n, n).pvalue)
    assert found.deviation == 0 and found.interval is None
    same = paired_difference(reference, reference)
    assert (same.p, same.mean, same.positive, same.interval) == (1.0, 0.0, 0, None)


def test_a_gain_of_a_loss_is_the_difference_turned_round():
    values, reference = by_seed([1.0, 2.0, 3.5, 1.0]), by_seed([1.5, 2.5, 3.0, 1.0])
    turned = paired_difference(values, reference).times(-1)
    known = paired_difference(reference, values)
    assert (turned.n, turned.positive, turned.differences) == (known.n, known.positive, known.differences)
    assert turned.positive == 2  # of four; one is 0
    assert turned.interval == pytest.approx(known.interval) and turned.p == pytest.approx(known.p)
    assert paired_difference(values, reference).times(1) == paired_difference(values, reference)


@pytest.mark.parametrize("n", [3, 8])
def test_the_interval_covers_the_true_difference_in_95_of_100_data_sets(n):
    rng, covered, sets = np.random.default_rng(n), 0, 2500
    for _ in range(sets):
        worlds = rng.normal(0, 5, n)  # shared by both arms, and far larger than the difference
        found = paired_difference(by_seed(worlds + rng.normal(0.3, 1, n)), by_seed(worlds + rng.normal(0, 1, n)))
        covered += found.interval[0] <= 0.3 <= found.interval[1]
    assert covered / sets == pytest.approx(0.95, abs=0.015)  # 3.5 standard errors


# ---- Holm


def test_holm_by_hand():
    """Sorted: 0.005, 0.01, 0.03, 0.04; times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_leaves_out_what_was_not_tested():
    assert holm([None, 0.02, None, 0.03]) == [None, 0.04, None, 0.04]


# ---- seeds to resolve


@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_of_the_tables(effect, n):
    """What G*Power gives for the difference of two dependent means, two-sided, 0.05, power 0.8."""
    assert seeds_to_resolve(1.0, effect) == n
    assert seeds_to_resolve(2.0, -2 * effect) == n


def test_seeds_reach_the_power_in_a_simulation():
    for effect, power in ((0.7, 0.8), (1.5, 0.9)):
        n = seeds_to_resolve(1.0, effect, power)
        reached = []
        for size in (n - 1, n):
            differences = np.random.default_rng(7).normal(effect, 1.0, (60_000, size))
            reached.append((stats.ttest_1samp(differences, 0, axis=1).pvalue < 0.05).mean())
        assert reached[0] - 0.006 < power < reached[1] + 0.006


def test_seeds_of_a_large_number_are_those_of_the_normal_distribution():
    """(1.95996 + 0.84162)^2 / 0.03^2 = 8721, and the t test takes about two more: z^2 / 2."""
    known = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 / 0.03**2
    assert known < seeds_to_resolve(1.0, 0.03) < known + 4


def test_seeds_have_bounds():
    assert seeds_to_resolve(0.001, 5.0) == 2
    assert seeds_to_resolve(0.0, 5.0) == 2
    assert seeds_to_resolve(1.0, 0.02) is None  # 19,600
    with pytest.raises(ValueError, match="difference must not be 0"):
        seeds_to_resolve(1.0, 0.0)


# ---- questions


def answers(rights, per_image: int, questions: str = "q") -> list[Answer]:
    return [Answer(f"{questions}{place}", f"image_{place // per_image}", bool(right)) for place, right in enumerate(rights)]


def test_questions_of_their_own_have_the_interval_of_a_paired_difference():
    rng = np.random.default_rng(0)
    pairs = [rng.random((2, 500)) < 0.6 for _ in range(2)]
    found = question_interval(*({seed: answers(pair[row], 1) for seed, pair in enumerate(pairs)} for row in (0, 1)))
    differences = np.concatenate([pair[0].astype(float) - pair[1] for pair in pairs])
    reach = 1.96 * differences.std() / 1000**0.5
    assert (found.questions, found.images) == (1000, 1000)
    assert found.accuracy == pytest.approx(np.mean([pair[0] for pair in pairs]))
    assert found.mean == pytest.approx(differences.mean())
    assert found.interval == pytest.approx((found.mean - reach, found.mean + reach), abs=0.15 * reach)


def test_questions_about_one_image_count_together():
    """An arm that sees an image answers all of its ten questions: 60 images tell as much as 60 questions."""
    rng = np.random.default_rng(1)
    arm, reference = (np.repeat(rng.random(60) < share, 10) for share in (0.7, 0.5))
    widths = []
    for per_image in (1, 10):
        found = question_interval({0: answers(arm, per_image)}, {0: answers(reference, per_image)})
        widths.append(found.interval[1] - found.interval[0])
    assert widths[1] == pytest.approx(10**0.5 * widths[0], rel=0.1)


def test_images_of_two_seeds_are_two_images():
    """Each seed has a world of its own, with its own scene_0."""
    rng = np.random.default_rng(2)
    arm, reference = ({seed: answers(rng.random(100) < share, 10) for seed in range(5)} for share in (0.7, 0.5))
    assert question_interval(arm, reference).images == 50


def test_the_interval_over_questions_covers_in_95_of_100_data_sets():
    """60 images with ten questions each; the arm gains 0.5 on some and loses 0.3 on others, 0.1 in the mean."""
    rng, covered, sets = np.random.default_rng(3), 0, 250
    for _ in range(sets):
        easy, gain = np.repeat(rng.uniform(0.35, 0.45, 60), 10), np.repeat(rng.choice([-0.3, 0.5], 60), 10)
        arm, reference = rng.random(600) < easy + gain, rng.random(600) < easy
        low, high = question_interval({0: answers(arm, 10)}, {0: answers(reference, 10)}).interval
        covered += low <= 0.1 <= high
    assert covered / sets == pytest.approx(0.95, abs=0.04)  # three standard errors


def test_only_questions_that_both_answered_count():
    arm, reference = answers([1, 1, 0, 0, 1, 1], 1), answers([0, 1, 0, 1], 1)
    found = question_interval({0: arm, 1: arm}, {0: reference})
    assert (found.questions, found.images, found.mean) == (4, 4, 0.0)
    assert question_interval({1: arm}, {0: reference}) is None
    assert question_interval({0: answers([1, 0], 2)}, {0: answers([0, 0], 2)}).interval is None  # one image


def test_where_no_answer_differs_there_is_still_an_interval():
    """100 images without a difference leave room for Wilson's 3.7 % that have one."""
    same = {0: answers([1, 0] * 50, 1)}
    reach = wilson(0.0, 100, 1.0)[1]
    assert question_interval(same, same).interval == pytest.approx((-reach, reach)) and 0.03 < reach < 0.04
    low, high = question_interval({0: answers([1] * 20, 1)}, {0: answers([0] * 20, 1)}).interval
    assert high == 1.0 and 0.6 < low < 0.75


def test_a_missing_scipy_is_said_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match=r"need scipy: pip install 'lit-eve\[sweeps\]'"):
        paired_difference(by_seed([1, 2]), by_seed([2, 4]))
    with pytest.raises(ConfigError, match="need scipy"):
        seeds_to_resolve(1.0, 0.5)
