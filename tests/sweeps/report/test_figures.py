"""What is in the pictures, read off their axes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lit_eve.sweeps.ablation import Metric, Paper
from lit_eve.sweeps.report import figures
from lit_eve.sweeps.report.comparison import compare
from lit_eve.sweeps.report.figures import arm_styles, draw_curves, draw_differences
from tests.sweeps.report.made_up import ACCURACY, LOSS, ablation, trial, trials

CURVES = ("1_prealign/val/language_loss", "2_pretrain/val/language_loss")


@pytest.fixture
def drawn(monkeypatch):
    """The axes of every figure that is drawn."""
    seen, real = [], figures.figure

    @contextmanager
    def watched(*args, **kwargs):
        with real(*args, **kwargs) as axes:
            yield axes
            seen.extend(axes.flat)

    monkeypatch.setattr(figures, "figure", watched)
    return seen


def at(ax, place: int) -> list:
    """x of what is drawn in a row of the forest: the interval, and the mean."""
    inside = [line for line in ax.lines if line.get_transform() == ax.transData]
    return [line.get_xdata().tolist() for line in inside if set(np.ravel(line.get_ydata())) == {place}]


def test_gains_are_to_the_right_whichever_direction_is_good(tmp_path, drawn):
    comparisons = compare(
        ablation("without", "with", "worse", metrics=(LOSS, ACCURACY)),
        trials({"without": 0.0, "with": -0.1, "worse": 0.1}, 6, images=200),
    )
    draw_differences(tmp_path / "forest.png", comparisons)
    for ax, comparison in zip(drawn, comparisons, strict=True):
        for place, row in enumerate(comparison.rows[1:]):
            interval, mean = at(ax, place)
            sign = comparison.metric.sign
            assert mean == [pytest.approx(sign * row.difference.mean)] and (mean[0] > 0) == (row.arm == "with")
            assert sorted(interval) == pytest.approx(sorted(sign * end for end in row.difference.interval))
        assert [label.get_text() for label in drawn[0].get_yticklabels()] == ["with", "worse"]
        (worth,) = ax.patches
        assert worth.get_x() == -comparison.metric.difference and worth.get_width() == 2 * comparison.metric.difference
    assert Image.open(tmp_path / "forest.png").width > 600


def test_the_side_of_the_paper_is_marked(tmp_path, drawn):
    made = ablation("without", "with", "half", paper=Paper(better=("with",), worse=("half",)))
    draw_differences(tmp_path / "forest.png", compare(made, trials({"without": 0, "with": 0, "half": 0}, 3)))
    marks = {line.get_marker(): line.get_xydata().tolist() for line in drawn[0].lines if line.get_marker() in ("<", ">")}
    assert marks == {">": [[1, 0]], "<": [[0, 1]]}


def test_a_forest_of_little(tmp_path, drawn):
    """One seed, an arm without trials, long names, a metric that nobody can compare."""
    name = "teacher_dino_v2_with_registers_layer_-4_and_pooled_to_the_grid"
    made = ablation("without", name, "never", metrics=(LOSS, ACCURACY, Metric("extra", "lower"), Metric("more", "higher")))
    some = [trial(arm, 0, looks_loss=0.5, question_accuracy=0.5, more=1.0) for arm in ("without", name)]
    draw_differences(tmp_path / "forest.png", compare(made, [*some, trial("without", 1, extra=1.0)]))
    assert at(drawn[0], 0) == [[0.0]]
    assert [text.get_text().strip() for text in drawn[2].texts] == ["not measured"] * 2
    label = drawn[0].get_yticklabels()[0].get_text()
    assert label.replace("\n", "") == name and max(map(len, label.split("\n"))) <= figures.LABEL
    assert drawn[0].get_subplotspec().get_gridspec().get_geometry() == (2, 2)


def test_curves_are_means_over_seeds(tmp_path, drawn):
    made = trials({"without": 0.0, "with": -0.05}, 5)
    said = draw_curves(tmp_path / "curves.png", made, ("without", "with"), "without", CURVES)
    assert said == "Lines are means over seeds (how many: in brackets); bands are the 95 % interval of the mean over seeds."
    values = np.array([[value for _, value in one.curves[CURVES[1]]] for one in made if one.arm == "with"])
    line = drawn[1].lines[1]
    assert line.get_xdata() == pytest.approx(np.arange(100, 1201, 100)) and line.get_ydata() == pytest.approx(values.mean(0))
    from scipy import stats

    low, high = stats.t.interval(0.95, 4, values.mean(0), stats.sem(values))
    band = drawn[1].collections[1].get_paths()[0].vertices[:, 1]
    assert {*low.round(9), *high.round(9)} <= set(band.round(9))


def test_few_seeds_have_their_range_as_band(tmp_path, drawn):
    made = trials({"without": 0.0, "with": -0.05}, 5)[:-1]  # "with" has four
    assert "95 %" in draw_curves(tmp_path / "curves.png", made, ("without", "with"), "without", CURVES)
    drawn.clear()
    made = made[:6]
    assert "the range over seeds" in draw_curves(tmp_path / "curves.png", made, ("without", "with"), "without", CURVES)
    values = np.array([[value for _, value in one.curves[CURVES[0]]] for one in made if one.arm == "without"])
    band = drawn[0].collections[0].get_paths()[0].vertices[:, 1]
    assert {*values.min(0), *values.max(0)} <= set(band)


def test_of_many_arms_the_reference_alone_has_a_band(tmp_path, drawn):
    arms = [f"arm_{number}" for number in range(10)]
    made = trials(dict.fromkeys(arms, 0.0), 2)
    assert draw_curves(tmp_path / "curves.png", made, arms, "arm_0", CURVES).endswith("range over seeds, of arm_0 alone.")
    assert len(drawn[0].lines) == 10 and len(drawn[0].collections) == 1
    styles = {(style["color"], str(style["linestyle"])) for style in arm_styles(arms, "arm_0").values()}
    assert len(styles) == 10


def test_curves_of_unequal_trials(tmp_path, drawn):
    """The mean is taken where all seeds have a curve, so that it does not jump; a loss that is no number leaves a gap."""
    whole, short = trials({"with": 0.0}, 2)
    curve = short.curves[CURVES[1]]
    short = replace(short, curves={CURVES[1]: [*curve[:5], (600, float("nan"))]})
    draw_curves(tmp_path / "curves.png", [whole, short], ("without", "with"), "without", CURVES)
    assert drawn[1].lines[0].get_xdata().tolist() == [100, 200, 300, 400, 500, 600]
    assert np.isfinite(drawn[1].lines[0].get_ydata()).tolist() == [True] * 5 + [False]
    assert np.isfinite(drawn[1].get_ylim()).all()


def test_seeds_that_were_tried_at_other_steps_have_a_mean(tmp_path, drawn):
    """Worlds of other seeds fill other numbers of rows: a quarter of an epoch is not as many steps."""
    one, other = trials({"with": 0.0}, 2)
    one = replace(one, curves={CURVES[1]: [(184, 1.0), (367, 0.5), (550, 0.3)]})
    other = replace(other, curves={CURVES[1]: [(182, 1.2), (364, 0.6), (545, 0.4)]})
    draw_curves(tmp_path / "curves.png", [one, other], ("without", "with"), "without", CURVES[1:])
    (line,) = drawn[0].lines
    assert line.get_xdata().tolist() == [184, 364, 367, 545]
    between = [1.2 + (0.6 - 1.2) * 2 / 182, 0.5 + (1.0 - 0.5) * 3 / 183]  # of other at 184, of one at 364
    assert line.get_ydata()[:2] == pytest.approx([(1.0 + between[0]) / 2, (between[1] + 0.6) / 2])
    draw_curves(tmp_path / "curves.png", [one, replace(other, curves={})], ("without", "with"), "without", CURVES[1:])
    assert drawn[-1].lines[0].get_ydata().tolist() == [1.0, 0.5, 0.3]


def test_the_beginning_may_leave_the_panel(tmp_path, drawn):
    """The loss falls from 1.9 to 0.4; after a third of the steps all of it is there."""
    made = trials({"without": 0.0, "with": -0.05}, 2)
    draw_curves(tmp_path / "curves.png", made, ("without", "with"), "without", CURVES[1:])
    late = [value for one in made for step, value in one.curves[CURVES[1]] if step >= 400]
    low, high = drawn[0].get_ylim()
    assert low < min(late) and max(late) < high < 1.0


def test_an_arm_of_few_steps_stays_in_the_panel(tmp_path, drawn):
    """As one that reads a sixteenth of the data."""
    whole, short = trials({"without": 0.0, "with": 0.0}, 1)
    short = replace(short, curves={CURVES[1]: [(step, value) for step, value in short.curves[CURVES[1]] if step <= 300]})
    draw_curves(tmp_path / "curves.png", [whole, short], ("without", "with"), "without", CURVES[1:])
    low, high = drawn[0].get_ylim()
    assert all(low < value < high for _, value in short.curves[CURVES[1]])
