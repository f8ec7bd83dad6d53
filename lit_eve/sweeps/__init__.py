"""Ablations: arms x seeds of a recipe, as processes that survive any interruption, and what can be said of their results."""

from lit_eve.sweeps.run_folders.comparison import RunComparison, compare, compare_all
from lit_eve.sweeps.run_folders.figure import draw_runs
from lit_eve.sweeps.run_folders.reading import Run, read_run

__all__ = ["Run", "RunComparison", "compare", "compare_all", "draw_runs", "read_run"]
