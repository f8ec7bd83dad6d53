"""``RESULTS.md``: what all ablations say, a section each, between comments that name it, under a table of answers.

RESULTS.md              words of your own, the overview, the sections
results/NAME.png        the forest plot
results/NAME_curves.png
results/NAME.csv        the numbers, tidy
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from lit_eve.errors import ConfigError
from lit_eve.files import write_atomically
from lit_eve.markdown import table
from lit_eve.sweeps.ablation import Ablation
from lit_eve.sweeps.report import sections
from lit_eve.sweeps.report.comparison import compare, in_order
from lit_eve.sweeps.report.curves import learning_curves
from lit_eve.sweeps.report.figures import draw_differences
from lit_eve.sweeps.report.results import Trial, write_csv
from lit_eve.sweeps.report.verdict import RULE

FILE, FOLDER = "RESULTS.md", "results"
PANELS = 2
"""Learning curves of an ablation."""
TITLE = "# Results of the ablations"
OVERVIEW, END_OF_OVERVIEW = "<!-- overview -->", "<!-- end of overview -->"
_SECTION = re.compile(r"<!-- ablation (?P<name>.+?) -->\n(?P<text>.*?)\n<!-- end of (?P=name) -->", re.DOTALL)
_DATE = re.compile(r"^- Date: .*$", re.MULTILINE)


def publish(
    folder: Path,
    ablation: Ablation,
    trials: Sequence[Trial],
    failed: Mapping[str, str],
    command: str,
    date: datetime.date | None = None,
) -> Path:
    """Put the section of an ablation into ``RESULTS.md``, or replace it. Without new results, nothing changes.

    Args:
        folder: where ``RESULTS.md`` and ``results/`` are, or shall be.
        ablation: its file; its name is the section's.
        trials: those that are done, in any order.
        failed: trials that failed, as of :func:`lit_eve.sweeps.report.page.write_report`.
        command: what was called.
        date: of the results; default: today, or the date that is there, if all else is as it was.

    Returns:
        The path of ``RESULTS.md``.

    Raises:
        ConfigError: there is no trial; as of ``write_report``; or ``RESULTS.md`` has words below the overview that belong to no
            ablation, and would be lost.
    """
    if not trials:
        raise ConfigError(f"{ablation.path}: there is no trial to publish")
    path, trials = folder / FILE, in_order(ablation, trials)
    introduction, published = _read(path)
    text = _section(folder, ablation, trials, failed, command, (date or datetime.date.today()).isoformat())
    before = published.get(ablation.name, "")
    if date is not None or _DATE.sub("", before) != _DATE.sub("", text):
        published[ablation.name] = text
    write_csv(folder / FOLDER / f"{ablation.name}.csv", trials)
    parts = [introduction, f"{OVERVIEW}\n{_overview(published)}\n{END_OF_OVERVIEW}"]
    parts += [f"<!-- ablation {name} -->\n{published[name]}\n<!-- end of {name} -->" for name in sorted(published)]
    write_atomically(path, "\n\n".join(parts) + "\n")
    return path


def _read(path: Path) -> tuple[str, dict[str, str]]:
    """What stands above the overview, and the sections by name."""
    if not path.exists():
        return TITLE, {}
    text = path.read_text("utf-8")
    published = {match["name"]: match["text"] for match in _SECTION.finditer(text)}
    introduction, _, rest = _SECTION.sub("", text).partition(OVERVIEW)
    if lost := rest.partition(END_OF_OVERVIEW)[2].strip():
        raise ConfigError(f"{path}: {lost.splitlines()[0]!r} stands below the overview, but in no ablation; move it above")
    return introduction.strip() or TITLE, published


def _section(
    folder: Path, ablation: Ablation, trials: Sequence[Trial], failed: Mapping[str, str], command: str, date: str
) -> str:
    """The section of an ablation; its forest plot is drawn."""
    comparisons = compare(ablation, trials)
    parts = [
        f"## {ablation.name}",
        f"**{ablation.question}**",
        sections.by_rule(ablation, comparisons, trials),
        sections.state(ablation, trials, failed),
        f"Known: {known}" if (known := sections.paper(ablation)) else "",
        *map(sections.metric_section, comparisons),
    ]
    if any(row.difference for comparison in comparisons for row in comparison.rows):
        draw_differences(folder / FOLDER / f"{ablation.name}.png", comparisons)
        title = "Paired differences of each arm to its reference; gains are to the right"
        parts.append(f"![{title}]({_link(ablation.name, '.png')})")
    if over_questions := sections.questions(ablation, trials):
        parts += ["### Accuracy over questions", over_questions, sections.QUESTIONS]
    curves = f"{ablation.name}_curves"
    path = folder / FOLDER / f"{curves}.png"
    parts += learning_curves(path, ablation, trials, comparisons[0], PANELS, _link(curves, ".png"))
    parts += [
        "### Cost",
        sections.cost(ablation, trials),
        sections.COST,
        f"Note: {ablation.note}" if ablation.note else "",
        sections.provenance(ablation, trials, command, date),
        f"Numbers: [{ablation.name}.csv]({_link(ablation.name, '.csv')})",
    ]
    return "\n\n".join(filter(None, parts))


def _link(name: str, ending: str) -> str:
    return quote(f"{FOLDER}/{name}{ending}")


def _overview(published: Mapping[str, str]) -> str:
    """A row per ablation: question, answer of its first metric, link."""
    rows = []
    for name in sorted(published):
        question = re.search(r"^\*\*(.+)\*\*$", published[name], re.MULTILINE)
        first = re.search(r"^\*\*Answer(.*), by rule:\*\*\n\n- (.+)$", published[name], re.MULTILINE)
        if question is None or first is None:
            raise ConfigError(f"{FILE}: the section of {name} has lost its question or its answer; publish it again")
        said = f"{first[1].strip()}: {first[2]}" if first[1] else first[2]
        rows.append((question[1], said, f"[{name}](#{_anchor(name)})"))
    header = ("question", "answer, by rule", "ablation")
    return f"{RULE} {sections.PAIRED}\n\n{table(header, rows, header)}"


def _anchor(title: str) -> str:
    """Where GitHub's link to a heading points to."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
