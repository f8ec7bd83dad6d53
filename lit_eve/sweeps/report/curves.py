"""Which learning curves are shown, and of which arms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from lit_eve.sweeps.ablation import Ablation
from lit_eve.sweeps.report.comparison import Comparison
from lit_eve.sweeps.report.figures import draw_curves
from lit_eve.sweeps.report.results import Trial

MOST_LINES = 12
"""Arms in a panel; the curves of all are in ``curves.csv``."""


def learning_curves(
    path: Path, ablation: Ablation, trials: Sequence[Trial], main: Comparison, panels: int, link: str
) -> list[str]:
    """Draw the figure, and return the paragraphs around it; none where there is no curve.

    Args:
        path: of the figure.
        main: the metric by which the best arms are found, where not all can be drawn.
        panels: how many curves at most.
        link: to the figure, in Markdown.
    """
    if not (names := shown_curves(ablation, trials, panels)):
        return []
    arms = shown_arms(ablation, main)
    bands = draw_curves(path, [one for one in trials if one.arm in arms], arms, ablation.reference, names)
    left_out = f" Drawn are the reference and the best arms by {main.metric.name}." * (len(arms) < len(ablation.arms))
    return ["### Learning curves", f"![Learning curves of the arms]({link})", f"{bands}{left_out}"]


def shown_curves(ablation: Ablation, trials: Sequence[Trial], panels: int) -> list[str]:
    """Names of the curves to draw: those of the file's metrics first, then other held-out ones, the last stages in front."""
    there = {name for trial in trials for name, curve in trial.curves.items() if len(curve) > 1}
    own = [metric.name for metric in ablation.metrics if metric.name in there]
    others = sorted((name for name in there if "val/" in name and name not in own), key=_last_stage_first)
    return [*own, *others][:panels]


def _last_stage_first(name: str) -> tuple[int, bool, str]:
    stage = name.split("_")[0]
    return -int(stage) if stage.isdigit() else 0, not name.endswith("language_loss"), name


def shown_arms(ablation: Ablation, main: Comparison) -> list[str]:
    """Arms whose curves are drawn, in the order of the file: all, or of many the reference and the best by the main metric."""
    means = {row.arm: main.metric.sign * fmean(row.values.values()) for row in main.rows if row.values}
    ranked = sorted(means, key=lambda arm: (arm != ablation.reference, -means[arm]))[:MOST_LINES]
    return [arm.name for arm in ablation.arms if len(ablation.arms) <= MOST_LINES or arm.name in ranked]
