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

from lit_eve.files import write_atomically
from lit_eve.markdown import code_block
from lit_eve.sweeps.ablation import Ablation
from lit_eve.sweeps.report import sections
from lit_eve.sweeps.report.comparison import Comparison, compare, in_order
from lit_eve.sweeps.report.curves import learning_curves
from lit_eve.sweeps.report.figures import draw_differences
from lit_eve.sweeps.report.results import CURVES, RESULTS, Trial, write_csv, write_curves
from lit_eve.sweeps.report.verdict import RULE

REPORT, DIFFERENCES, LEARNING = "report.md", "figures/differences.png", "figures/learning_curves.png"
PANELS = 6  # learning curves that are drawn; all are in curves.csv
FOREST = (
    "Gains are to the right, whether the metric shall be low or high. A small dot is one seed. Filled: resolved. "
    "Grey: less than is worth resolving."
)


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
        _titled("Cost", f"{sections.cost(ablation, trials)}\n\n{sections.COST}" if trials else ""),
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
    return parts + learning_curves(folder / LEARNING, ablation, trials, comparisons[0], PANELS, LEARNING)


def _failures(failed: Mapping[str, str]) -> str:
    if not failed:
        return ""
    return "\n\n".join(["## Failed trials", *(f"{name}:\n\n{code_block(log)}" for name, log in failed.items())])
