"""``report.md``: the answer of an ablation, its tables and pictures, from as many trials as there are.

report.md                       what a reader wants to know
results.csv, curves.csv         the numbers, tidy
figures/differences.png         the forest plot
figures/learning_curves.png
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from lit_eve.files import write_atomically
from lit_eve.markdown import code_block
from lit_eve.sweeps.ablation import Ablation
from lit_eve.sweeps.report import sections
from lit_eve.sweeps.report.comparison import Comparison, compare, in_order
from lit_eve.sweeps.report.figures import draw_curves, draw_differences
from lit_eve.sweeps.report.publishing import publish
from lit_eve.sweeps.report.results import CURVES, RESULTS, Trial, write_csv, write_curves
from lit_eve.sweeps.report.verdict import RULE

__all__ = ["publish", "write_report"]

REPORT, DIFFERENCES, LEARNING = "report.md", "figures/differences.png", "figures/learning_curves.png"
PANELS, MOST_LINES = 6, 12  # learning curves, and arms in each, that are drawn; all are in curves.csv
FOREST = (
    "Gains are to the right, whether the metric shall be low or high. A small dot is one seed. Filled: resolved. "
    "Grey: less than is worth resolving."
)
COST = "Means over the trials of an arm. Seconds of a core are of processor time, which a busy machine does not stretch."


def write_report(
    folder: Path,
    ablation: Ablation,
    trials: Sequence[Trial],
    failed: Mapping[str, str],
    command: str,
    date: datetime.date | None = None,
) -> Path:
    """Write tables, pictures and ``report.md``, in place of older ones. Trials may be missing; the report says which.

    Args:
        folder: of the ablation.
        ablation: its file.
        trials: those that are done, in any order.
        failed: of trials that failed, by name (``ARM/seed_N``), the end of the log.
        command: what was called.
        date: of the results; default: today.

    Returns:
        The path of ``report.md``.

    Raises:
        ConfigError: no trial wrote a metric of the file; a trial is there twice, or of an arm that the file does not have; or
            scipy is not installed.
    """
    trials = in_order(ablation, trials)
    comparisons = compare(ablation, trials)
    write_csv(folder / RESULTS, trials)
    write_curves(folder / CURVES, trials)
    day = (date or datetime.date.today()).isoformat()
    parts = [
        f"# {ablation.question}",
        sections.by_rule(ablation, comparisons, trials) if trials else "No trial is done yet.",
        sections.state(ablation, trials, failed),
        _titled("What is known", sections.paper(ablation)),
        _titled("Arms", sections.arms(ablation)),
        _titled("Where the numbers come from", sections.provenance(ablation, trials, command, day)),
        *_results(folder, ablation, comparisons, trials),
        _titled("Cost", f"{sections.cost(ablation, trials)}\n\n{COST}" if trials else ""),
        _failures(failed),
        _titled("Note", ablation.note or ""),
        f"All numbers: [{RESULTS}]({RESULTS}), [{CURVES}]({CURVES}).",
    ]
    path = folder / REPORT
    write_atomically(path, "\n\n".join(filter(None, parts)) + "\n")
    return path


def _titled(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""


def _results(folder: Path, ablation: Ablation, comparisons: Sequence[Comparison], trials: Sequence[Trial]) -> list[str]:
    """Tables and pictures of what came out."""
    if not trials:
        return []
    parts = ["## Results", f"{RULE} {sections.PAIRED}", *map(sections.metric_section, comparisons)]
    if any(row.difference for comparison in comparisons for row in comparison.rows):
        draw_differences(folder / DIFFERENCES, comparisons)
        parts += [f"![Paired differences of each arm to its reference]({DIFFERENCES})", FOREST]
    if over_questions := sections.questions(ablation, trials):
        parts += ["### Accuracy over questions", over_questions, sections.QUESTIONS]
    if names := shown_curves(ablation, trials):
        arms = shown_arms(ablation, comparisons[0])
        bands = draw_curves(folder / LEARNING, [one for one in trials if one.arm in arms], arms, ablation.reference, names)
        left_out = f" Drawn are the reference and the best arms by {comparisons[0].metric.name}." * (
            len(arms) < len(ablation.arms)
        )
        parts += ["### Learning curves", f"![Learning curves of the arms]({LEARNING})", f"{bands}{left_out}"]
    return parts


def shown_curves(ablation: Ablation, trials: Sequence[Trial]) -> list[str]:
    """Names of the curves to draw, at most six: those of the file's metrics first, then other held-out ones."""
    there = {name for trial in trials for name, curve in trial.curves.items() if len(curve) > 1}
    own = [metric.name for metric in ablation.metrics if metric.name in there]
    return [*own, *sorted(name for name in there if "val/" in name and name not in own)][:PANELS]


def shown_arms(ablation: Ablation, main: Comparison) -> list[str]:
    """Arms whose curves are drawn, in the order of the file: all, or of many the reference and the best by the main metric."""
    means = {row.arm: main.metric.sign * fmean(row.values.values()) for row in main.rows if row.values}
    ranked = sorted(means, key=lambda arm: (arm != ablation.reference, -means[arm]))[:MOST_LINES]
    return [arm.name for arm in ablation.arms if len(ablation.arms) <= MOST_LINES or arm.name in ranked]


def _failures(failed: Mapping[str, str]) -> str:
    if not failed:
        return ""
    return "\n\n".join(["## Failed trials", *(f"{name}:\n\n{code_block(log)}" for name, log in failed.items())])
