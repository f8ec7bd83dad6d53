"""The pictures of a report: paired differences with their intervals, and learning curves with bands over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_eve.plotting import BLUE, CATEGORIES, FAINT, INK, ORANGE, SOFT, figure
from lit_eve.sweeps.report.comparison import Comparison, Row
from lit_eve.sweeps.report.results import Trial
from lit_eve.sweeps.report.statistics import at_common_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3  # panels beside each other
LABEL = 26  # characters of an arm's name in a line
FEWEST = 4  # seeds whose interval is narrower than a guess; of fewer, the range is shown
BANDS = 4  # arms whose bands can be told apart
PAPER = ORANGE
LINES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def draw_differences(path: Path, comparisons: Sequence[Comparison]) -> None:
    """The forest plot: a panel per metric, a row per arm beside the reference; gains are to the right, whatever the metric.

    A small dot is the paired difference of one seed; the large one is their mean, filled where it is resolved; the line is the
    95 % interval. Grey is what lies within the metric's difference that is worth resolving. A triangle at the edge shows the
    side of the paper.
    """
    compared = [row for row in comparisons[0].rows if row.verdict]
    arms = [_beside(row, comparisons[0]) for row in compared]
    rows, columns = _grid(len(comparisons))
    labels = [_label(arm) for arm in arms]
    height = sum(max(0.3, 0.17 * (label.count("\n") + 1)) for label in labels) + 1.0
    width = 0.075 * max(len(line) for label in labels for line in label.split("\n"))
    with figure(path, rows, columns, (width + max(4.0, 2.6 * columns) + 0.5, height * rows + 0.4), sharey=True) as axes:
        for ax, comparison in zip(axes.flat, comparisons, strict=False):
            _draw_forest(ax, comparison)
        for ax in axes.flat[len(comparisons) :]:
            ax.remove()
        axes[0, 0].set_yticks(range(len(arms)), labels)
        axes[0, 0].set_ylim(len(arms) - 0.5, -0.5)
        axes[0, 0].figure.legend(*_forest_legend(comparisons), loc="outside lower left", ncols=2 + columns // 3, fontsize=8)


def _grid(panels: int) -> tuple[int, int]:
    """Rows and columns of so many panels."""
    rows = -(-panels // COLUMNS)
    return rows, -(-panels // rows)


def _draw_forest(ax: Axes, comparison: Comparison) -> None:
    metric = comparison.metric
    ax.set_title("\n".join(wrap(metric.name.replace("_", " "), 34, break_long_words=False)))
    if metric.difference is not None:
        ax.axvspan(-metric.difference, metric.difference, color=FAINT, alpha=0.35, linewidth=0, zorder=0)
    ax.axvline(0, color=SOFT, linewidth=1)
    for place, row in enumerate(row for row in comparison.rows if row.verdict):
        _draw_row(ax, place, row, comparison)
    references = {row.reference for row in comparison.rows if row.verdict}
    reference = _short(references.pop()) if len(references) == 1 else "its reference"
    ax.set_xlabel(f"better than {reference} →" if _has_differences(comparison) else "no seed to compare")
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.grid(axis="y", visible=False)
    ax.spines["left"].set_visible(False)
    ax.locator_params(axis="x", nbins=5)
    left, right = ax.get_xlim()
    ax.set_xlim(min(left, -0.15 * right), max(right, -0.15 * left))


def _draw_row(ax: Axes, place: int, row: Row, comparison: Comparison) -> None:
    gain = comparison.gain(row)
    if row.sign_of_paper:
        edge, marker = (1, ">") if row.sign_of_paper > 0 else (0, "<")
        ax.plot(edge, place, marker, color=PAPER, markersize=6, transform=ax.get_yaxis_transform(), clip_on=False)
    if gain is None:
        ax.text(0, place, " not measured", va="center", color=SOFT, fontsize=8)
        return
    colour = BLUE if row.verdict.is_resolved else SOFT
    if gain.n > 1:
        ax.plot(gain.differences, [place + 0.24] * gain.n, ".", color=colour, alpha=0.55, markersize=5.5, markeredgewidth=0)
    if gain.interval:
        ax.plot(gain.interval, [place, place], color=colour, linewidth=1.8, solid_capstyle="butt")
    face = colour if row.verdict.is_resolved else "white"
    ax.plot(gain.mean, place, "o", color=colour, markerfacecolor=face, markersize=6.5, markeredgewidth=1.4)


def _beside(row: Row, comparison: Comparison) -> str:
    """The arm, and its reference where that is not the one of most."""
    return row.arm if row.reference == comparison.reference else f"{row.arm} beside {row.reference}"


def _has_differences(comparison: Comparison) -> bool:
    return any(row.difference for row in comparison.rows)


def _forest_legend(comparisons: Sequence[Comparison]) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def dot(colour: str, face: str, **kwargs: Any) -> Line2D:
        return Line2D([], [], marker="o", color=colour, markerfacecolor=face, linewidth=1.8, markersize=6, **kwargs)

    entries = {
        "mean and 95 % interval, resolved": dot(BLUE, BLUE),
        "not resolved": dot(SOFT, "white"),
        "one seed": Line2D([], [], marker=".", color=SOFT, linewidth=0, alpha=0.6),
    }
    if any(comparison.metric.difference is not None for comparison in comparisons):
        entries["less than is worth resolving"] = Patch(color=FAINT, alpha=0.35, linewidth=0)
    if any(row.sign_of_paper for comparison in comparisons for row in comparison.rows):
        entries["the paper's sign"] = Line2D([], [], marker=">", color=PAPER, linewidth=0, markersize=6)
    return list(entries.values()), list(entries)


def draw_curves(path: Path, trials: Sequence[Trial], arms: Sequence[str], reference: str, metrics: Sequence[str]) -> str:
    """Learning curves: a panel per metric, a line per arm (the mean over its seeds), and a band.

    The mean is taken where all seeds of the arm have a curve (:func:`at_common_steps`). The band is the 95 % interval of the
    mean where every arm has four seeds or more, otherwise the range over seeds. Of more than four arms, only the reference has
    a band. The first third of each curve, where all fall alike, may leave the panel at the top.

    Args:
        path: of the PNG.
        trials: of all arms.
        arms: their names, in the order of the legend.
        reference: one of them; it is black.
        metrics: names of curves that at least one trial has.

    Returns:
        What the bands are, in a sentence.
    """
    seeds = {arm: sum(trial.arm == arm for trial in trials) for arm in arms}
    drawn = [arm for arm in arms if seeds[arm]]
    is_interval = min(seeds[arm] for arm in drawn) >= FEWEST
    rows, columns = _grid(len(metrics))
    styles = arm_styles(arms, reference)
    names = [f"{_short(arm, 60)} ({seeds[arm]})" for arm in drawn]
    width = 3.3 * columns + 1.2
    beside = max(1, min(len(names), int(width / (0.065 * max(map(len, names)) + 0.6))))  # entries of the legend
    with figure(path, rows, columns, (width, 2.6 * rows + 0.3 + 0.18 * -(-len(names) // beside))) as axes:
        for ax, metric in zip(axes.flat, metrics, strict=False):
            ax.set_title("\n".join(wrap(metric.replace("_", " "), 40, break_long_words=False)))
            for arm in drawn:
                curves = [trial.curves[metric] for trial in trials if trial.arm == arm and metric in trial.curves]
                has_band = len(drawn) <= BANDS or arm == reference
                _draw_curve(ax, curves, styles[arm], is_interval, has_band)
            _leave_out_the_beginning(ax)
            ax.set_xlabel("optimizer step")
            ax.locator_params(axis="x", nbins=5)
        for ax in axes.flat[len(metrics) :]:
            ax.remove()
        handles = [_line(styles[arm]) for arm in drawn]
        axes[0, 0].figure.legend(handles, names, loc="outside lower left", ncols=beside, fontsize=8)
    band = "95 % interval of the mean over seeds" if is_interval else "range over seeds"
    whose = "" if len(drawn) <= BANDS else f", of {reference} alone"
    return f"Lines are means over seeds (how many: in brackets); bands are the {band}{whose}."


def arm_styles(arms: Sequence[str], reference: str) -> dict[str, Mapping[str, Any]]:
    """Colour and line style of each arm; the reference is black."""
    others = [arm for arm in arms if arm != reference]
    kinds = [(colour, line) for line in LINES for colour in CATEGORIES]
    styles = dict(zip(others, cycle(kinds), strict=False))
    styles[reference] = (INK, "-")
    return {
        arm: {"color": styles[arm][0], "linestyle": styles[arm][1], "linewidth": 1.5, "zorder": 3 if arm == reference else 2}
        for arm in arms
    }


def _draw_curve(
    ax: Axes, curves: Sequence[Sequence[tuple[int, float]]], style: Mapping[str, Any], is_interval: bool, has_band: bool
) -> None:
    steps, values = at_common_steps(curves)
    if not len(steps):
        return
    mean = values.mean(axis=0)
    ax.plot(steps, mean, marker="o" if len(steps) == 1 else None, markersize=4, **style)
    if has_band and len(values) > 1:
        low, high = _interval(values) if is_interval else (values.min(axis=0), values.max(axis=0))
        ax.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def _leave_out_the_beginning(ax: Axes) -> None:
    """Limits of what is drawn after the first third of each curve, so that differences at the end can be seen."""
    drawn = [line.get_xydata() for line in ax.lines] + [band.get_paths()[0].vertices for band in ax.collections]
    drawn = [points[np.isfinite(points).all(axis=1)] for points in drawn]
    drawn = [points for points in drawn if len(points)]
    if not drawn:
        return
    late = np.concatenate([points[points[:, 0] >= points[:, 0].max() / 3, 1] for points in drawn])
    if (margin := 0.06 * np.ptp(late)) > 0:
        ax.set_ylim(late.min() - margin, late.max() + margin)
        ax.set_xlim(0, 1.02 * max(points[:, 0].max() for points in drawn))


def _interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95 % interval of the mean over seeds, values (seeds, steps)."""
    from lit_eve.sweeps.report.statistics import LEVEL, scipy_stats

    mean, error = values.mean(axis=0), values.std(axis=0, ddof=1) / len(values) ** 0.5
    reach = scipy_stats().t.ppf(1 - LEVEL / 2, len(values) - 1) * error
    return mean - reach, mean + reach


def _line(style: Mapping[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _label(arm: str) -> str:
    """An arm's name in lines; it may break after a sign, as names of folders have no spaces."""
    pieces = "".join(letter + ("\0" if letter in "_-+=,. " else "") for letter in arm).split("\0")
    lines = [""]
    for piece in pieces:
        if lines[-1] and len(lines[-1]) + len(piece) > LABEL:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
