"""The curves of some runs, in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_eve.errors import ConfigError
from lit_eve.nano.figures import smooth
from lit_eve.plotting import colours, drawing
from lit_eve.records import STEP
from lit_eve.sweeps.run_folders.comparison import RunComparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3  # of panels
SMOOTHED = 40  # a curve of so many points gets a running mean


def draw_runs(comparison: RunComparison, axis: str = STEP, metrics: Sequence[str] | None = None) -> Figure:
    """Draw metrics of runs, a panel each: one colour per run; where rows are many, thin, with their running mean.

    Args:
        comparison: the runs.
        axis: one of ``lit_eve.sweeps.run_folders.reading.AXES``.
        metrics: which; default: ``comparison.curves``, those of training and validation that at least two runs have.

    Raises:
        ConfigError: there is nothing to draw, no run has one of the metrics, or a run that has curves does not know the axis.
    """
    if not (metrics := comparison.curves if metrics is None else metrics):
        raise ConfigError("no two of the runs have logged the same metric")
    if unknown := [metric for metric in metrics if not any(metric in run.curves for run in comparison.runs.values())]:
        raise ConfigError(f"no run has a curve of {unknown[0]!r}")
    columns = min(COLUMNS, len(metrics))
    rows = math.ceil(len(metrics) / columns)
    palette = dict(zip(comparison.runs, colours(len(comparison.runs)), strict=True))
    with drawing(rows, columns, ((3.6 if columns == COLUMNS else 4.8) * columns, 2.5 * rows + 0.5)) as (picture, axes):
        for place, metric in zip(axes.flat, metrics, strict=False):
            for name, run in comparison.runs.items():
                if metric in run.curves:
                    _plot(place, *run.along(metric, axis), palette[name], name)
            _scale(place, metric, axis)
        for place in axes.flat[len(metrics) :]:
            place.axis("off")
        known = {line.get_label(): line for place in axes.flat for line in place.lines if line.get_label() in palette}
        names = [name for name in palette if name in known]
        picture.legend([known[n] for n in names], names, loc="outside upper left", ncols=min(len(names), 5))
    return picture


def _plot(place: Any, x: np.ndarray, values: np.ndarray, colour: Any, name: str) -> None:
    x, values = x[np.isfinite(values)], values[np.isfinite(values)]
    if len(x) < SMOOTHED:
        place.plot(x, values, color=colour, linewidth=1.4, label=name, marker="o" if len(x) <= 8 else None, markersize=3.5)
        return
    place.plot(x, values, color=colour, alpha=0.25, linewidth=0.7)
    place.plot(x, smooth(values, len(values) // 25), color=colour, linewidth=1.5, label=name)


def _scale(place: Any, metric: str, axis: str) -> None:
    """Losses that fall by more than ten times are drawn on a logarithmic scale, so that their ends can be told apart."""
    values = np.concatenate([np.asarray(line.get_ydata()) for line in place.lines])
    positive = values[values > 0]
    is_log = "accuracy" not in metric and 0 < len(positive) == len(values) and positive.max() > 10 * positive.min()
    if is_log:
        place.set_yscale("log")
    place.set_title(metric + " (log)" * bool(is_log))
    place.set_xlabel({"seconds": "seconds of training", "tokens": "tokens"}.get(axis, "optimizer step"))
    place.set_xlim(left=0)
