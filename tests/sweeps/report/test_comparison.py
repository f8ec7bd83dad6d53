"""Arms beside the reference, with trials missing, broken and of unequal value."""

from __future__ import annotations

import math

import pytest

from lit_eve.errors import ConfigError
from lit_eve.sweeps.ablation import Arm, Metric
from lit_eve.sweeps.report.comparison import compare
from lit_eve.sweeps.report.statistics import paired_difference, seeds_to_resolve
from tests.sweeps.report.made_up import ACCURACY, LOSS, ablation, trial, trials


def of(comparison, arm: str):
    return next(row for row in comparison.rows if row.arm == arm)


def test_a_lower_loss_is_a_gain_and_a_higher_accuracy_too():
    made = ablation("without", "with", metrics=(LOSS, ACCURACY))
    loss, accuracy = compare(made, trials({"without": 0.0, "with": -0.1}, seeds=8, images=200))
    assert of(loss, "with").difference.mean < -0.05 and of(accuracy, "with").difference.mean > 0.05
    for comparison in (loss, accuracy):
        row = of(comparison, "with")
        assert comparison.gain(row).mean > 0 and comparison.gain(row).positive == 8
        assert row.verdict.outcome == "better" and row.verdict.paper == "the paper's sign"
        assert row.difference == paired_difference(row.values, of(comparison, "without").values)
        assert row.needed == seeds_to_resolve(row.difference.deviation, comparison.metric.difference)
    assert of(loss, "without").verdict is of(loss, "without").difference is None


def test_p_is_adjusted_over_the_arms_of_a_metric():
    """0.03 alone is below 0.05; beside three other arms it is not."""
    values = {"without": (0.5, 0.6, 0.7, 0.8), "with": (0.46, 0.53, 0.66, 0.77)}
    alone = [trial(arm, seed, looks_loss=value) for arm, losses in values.items() for seed, value in enumerate(losses)]
    (comparison,) = compare(ablation("without", "with"), alone)
    p = of(comparison, "with").difference.p
    assert 0.0125 < p < 0.05 and of(comparison, "with").adjusted_p == p and of(comparison, "with").verdict.is_resolved
    others = [
        trial(arm, seed, looks_loss=values["without"][seed] + shift)
        for arm in ("a", "b", "c")
        for seed, shift in enumerate((0.1, -0.2, 0.3, -0.1))
    ]
    (comparison,) = compare(ablation("without", "with", "a", "b", "c"), alone + others)
    row = of(comparison, "with")
    assert row.adjusted_p == pytest.approx(4 * p)
    assert row.needed == seeds_to_resolve(row.difference.deviation, 0.03, level=0.05 / 4)
    assert of(comparison, "with").verdict.sentence.startswith("not resolved")


def test_missing_trials_leave_the_seeds_that_both_have():
    made = [one for one in trials({"without": 0, "with": -0.05, "never": 0}, 4) if one.name != "without/seed_2"]
    made = [one for one in made if one.arm != "never"]
    (comparison,) = compare(ablation("without", "with", "never"), made)
    assert of(comparison, "with").difference.n == 3 and len(of(comparison, "with").values) == 4
    assert of(comparison, "never").values == {} and of(comparison, "never").verdict.outcome == "not measured"
    (comparison,) = compare(ablation("without", "with"), [])
    assert [row.values for row in comparison.rows] == [{}, {}]


def test_an_arm_may_have_a_reference_of_its_own():
    made = ablation("much", "little", Arm("little_with", against="little"))
    (comparison,) = compare(made, trials({"much": 0.0, "little": 0.3, "little_with": 0.2}, seeds=6))
    row = of(comparison, "little_with")
    assert row.reference == "little" and of(comparison, "little").reference == "much"
    assert row.difference == paired_difference(row.values, of(comparison, "little").values)
    assert row.verdict.sentence.startswith("resolved: better than little by 0.1")


def test_a_value_that_is_no_number_counts_as_missing_and_is_named():
    made = [trial(arm, seed, looks_loss=0.5 + seed) for arm in ("without", "with") for seed in range(3)]
    made += [trial("with", 3, looks_loss=math.nan), trial("without", 3, looks_loss=0.2), trial("with", 4, looks_loss=math.inf)]
    (comparison,) = compare(ablation("without", "with"), made)
    assert comparison.not_finite == ("with/seed_3", "with/seed_4")
    assert of(comparison, "with").difference.n == 3 and of(comparison, "with").difference.mean == 0


def test_seeds_that_are_needed_are_not_guessed_from_nothing():
    """One seed has no spread, equal differences show none, and a metric may not say which difference is worth it."""
    for losses in ([0.5], [0.5, 0.5, 0.5]):
        made = [trial("without", seed, looks_loss=loss + 0.1) for seed, loss in enumerate(losses)]
        made += [trial("with", seed, looks_loss=loss) for seed, loss in enumerate(losses)]
        assert of(compare(ablation("without", "with"), made)[0], "with").needed is None
    made = ablation("without", "with", metrics=(Metric("looks_loss", "lower"),))
    assert of(compare(made, trials({"without": 0, "with": 0}, 4))[0], "with").needed is None


def test_a_metric_that_no_trial_wrote_is_refused():
    made = ablation("without", "with", metrics=(LOSS, Metric("look_loss", "lower")))
    with pytest.raises(ConfigError, match=r"metrics: no trial wrote 'look_loss'; there are looks_loss, question_accuracy$"):
        compare(made, trials({"without": 0, "with": 0}, 2))


def test_trials_of_another_file_are_refused():
    made = trials({"without": 0, "with": 0, "other": 0}, 1)
    with pytest.raises(ConfigError, match=r"other/seed_0 is a trial of no arm of the file; its arms are without, with"):
        compare(ablation("without", "with"), made)
    with pytest.raises(ConfigError, match=r"the trial with/seed_0 is there twice"):
        compare(ablation("without", "with"), [*made[:2], made[1]])
