"""The table of an evaluation beside the papers' rows, as Markdown and CSV, and a radar plot.

results.json    everything that the metrics tell
results.md      table, notes, scores by category
results.csv     the table
radar.png       the same as a picture, where there are three scores or more
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lit_eve.evaluation.benchmarks import BENCHMARKS
from lit_eve.evaluation.metrics import BenchmarkMetric
from lit_eve.evaluation.published import PUBLISHED
from lit_eve.evaluation.results import Result
from lit_eve.files import write_atomically
from lit_eve.plotting import BLUE, FAINT, GREEN, INK, ORANGE, RED, SOFT, figure

JSON, MARKDOWN, CSV, RADAR = "results.json", "results.md", "results.csv", "radar.png"
COMPARED = ("EVE-7B", "EVE-7B (HD)", "Fuyu-8B (HD)", "LLaVA-1.5 7B")
SOURCE = "Rows of other models: table 3 of the EVE paper (arXiv 2406.11832)."
RADAR_NOTE = "rim: the best score of all rows on that benchmark; middle: 0"
INTERVAL = "95 % intervals: a bootstrap over images. They tell of the choice of questions, not of seeds or judges."
SEED = " SEED there is of images and videos together."


def write_report(results: Sequence[Result], model: str, output: Path) -> list[Path]:
    """Write the four files, in place of older ones; returns those that were written.

    Args:
        results: of the tasks, in the order of the columns.
        model: the name of the row.
        output: the folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    content = {"model": model, "results": [_as_json(result) for result in results]}
    files = {JSON: json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"}
    has_radar = _draw_radar(results, model, output / RADAR)
    files |= {MARKDOWN: _markdown(results, model, has_radar), CSV: _csv(results, model)}
    for name, text in files.items():
        write_atomically(output / name, text)
    return [output / name for name in (MARKDOWN, CSV, JSON, *([RADAR] if has_radar else []))]


def print_table(results: Sequence[Result], model: str, output: Path) -> None:
    """Print the table, its notes, and where the rest is."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 140
    header, rows = table(results, model)
    rows[1:1] = intervals(results)
    lines = [header, *rows]
    is_wide = sum(max(map(len, column)) + 4 for column in zip(*lines, strict=True)) > console.width
    header, *rows = zip(*lines, strict=True) if is_wide else lines  # a benchmark a line, where there is little room
    shown = Table(box=box.SIMPLE_HEAD)
    for place, title in enumerate(header):
        shown.add_column(title, justify="right" if place else "left", style="bold" if is_wide and place == 1 else None)
    for place, row in enumerate(rows):
        shown.add_row(*row, style=None if is_wide or place else "bold")
    console.print(shown)
    for result in results:
        if notes := _notes(result):
            console.print(f"* {_title(result)}: {'; '.join(notes)}", markup=False)
    console.print(f"\n{output / MARKDOWN} has the scores by category.", markup=False)


def table(results: Sequence[Result], model: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the model's own first, then those of the papers. Scores with one decimal, as papers print them."""
    header = ["model", *(_title(result) for result in results)]
    worlds = dict.fromkeys(result.world for result in results if result.world)
    own = [
        f"{model} ({', '.join(worlds)})" if worlds else model,
        *(_shown(result, result.score) + ("*" if _notes(result) else "") for result in results),
    ]
    rows = [[name, *(_shown(result, PUBLISHED[name].get(result.benchmark)) for result in results)] for name in COMPARED]
    return header, [own, *(rows if _is_published(results) else [])]


def _is_published(results: Sequence[Result]) -> bool:
    """Whether a paper has scores of any of them."""
    return any(result.benchmark in PUBLISHED[COMPARED[0]] for result in results)


def intervals(results: Sequence[Result]) -> list[list[str]]:
    """The row of 95 % intervals; no row where there is none."""
    if not any(result.interval for result in results):
        return []
    shown = ["-" if each.interval is None else "–".join(_shown(each, end) for end in each.interval) for each in results]
    return [["95 % interval", *shown]]


def _as_json(result: Result) -> dict[str, Any]:
    """Its fields; a score over nothing is null, as JSON has no nan."""
    fields = asdict(result)
    for scores in (fields, fields["scores"]):
        scores.update({name: None for name, value in scores.items() if isinstance(value, float) and math.isnan(value)})
    return fields


def _notes(result: Result) -> list[str]:
    """What belongs to its star."""
    world = [f"{result.world}: the papers' scores do not compare"] if result.world else []
    return [*world, *result.notes]


def _title(result: Result) -> str:
    if result.benchmark not in BENCHMARKS:  # of one's own
        return result.task
    benchmark, split = BENCHMARKS[result.benchmark], _split(result)
    return benchmark.title + (f" {split}" if split != benchmark.splits[0] else "")


def _split(result: Result) -> str:
    return result.task.partition(":")[2] or BENCHMARKS[result.benchmark].splits[0]


def _shown(result: Result, score: float | None, digits: int = 1) -> str:
    """As the benchmark's official tool rounds it."""
    if score is None or math.isnan(score):
        return "-"
    metric = BENCHMARKS[result.benchmark].metric_class if result.benchmark in BENCHMARKS else BenchmarkMetric
    return f"{metric.rounded(score, digits):.{digits}f}"


def _csv(results: Sequence[Result], model: str) -> str:
    header, rows = table(results, model)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*header, "notes"])
    notes = "; ".join(f"{_title(result)}: {note}" for result in results for note in _notes(result))
    for row in rows:
        cells = ["" if cell.rstrip("*") == "-" else cell.rstrip("*") for cell in row]
        writer.writerow([*cells, notes if row is rows[0] else ""])
    return buffer.getvalue()


def _markdown(results: Sequence[Result], model: str, has_radar: bool) -> str:
    header, (own, *others) = table(results, model)
    bold = [f"**{cell.rstrip('*')}**" + "\\*" * cell.endswith("*") for cell in own]
    intervals_row = intervals(results)
    lines = [f"# {model}", "", _row(header), _row(["---", *["---:"] * len(results)]), _row(bold)]
    lines += map(_row, [*intervals_row, *others])
    lines += ["", *[INTERVAL] * len(intervals_row)]
    if _is_published(results):
        lines.append(SOURCE + SEED * any(result.benchmark == "seedbench" for result in results))
    lines.append("")
    noted = [result for result in results if _notes(result)]
    lines += [f"- \\* {_title(result)}: {'; '.join(_notes(result))}." for result in noted]
    if has_radar:
        lines += ["", f"![The scores as a radar plot]({RADAR})"]
    if files := [(result, path) for result in results for path in result.submission]:
        lines += ["", "## Files for servers and official tools", ""]
        lines += [f"- {_title(result)}: [`{path}`]({path}){_server(result)}" for result, path in files]
    lines += ["", "## Scores by category"]
    for result in results:
        if result.scores:
            lines += ["", f"### {_title(result)}", "", "| | |", "|---|---:|"]
            lines += [f"| {name} | {_shown(result, value, 2)} |" for name, value in result.scores.items()]
    if problems := [f"- {_title(result)}: {line}" for result in results for line in result.problems]:
        lines += ["", "## Problems", "", *problems]
    return "\n".join(lines) + "\n"


def _server(result: Result) -> str:
    """Where its files are handed in; empty for those of official tools, and of splits that the server knows nothing of."""
    if result.benchmark not in BENCHMARKS:
        return ""
    benchmark = BENCHMARKS[result.benchmark]
    if benchmark.server is None or (benchmark.unanswered and _split(result) not in benchmark.unanswered):
        return ""
    part = f"; it wants all {result.official:,} questions, and these are {result.answered:,}"
    return f": {benchmark.server}" + part * (result.answered < result.official)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _draw_radar(results: Sequence[Result], model: str, path: Path) -> bool:
    """One axis per score, from 0 in the middle to the best of all rows at the rim.

    False if there are fewer than three; then a plot of other scores, from before, goes.
    """
    compared = [result for result in results if result.benchmark in BENCHMARKS]
    shown = [result for result in compared if result.score is not None and np.isfinite(result.score)]
    if len(shown) < 3:
        path.unlink(missing_ok=True)
        return False
    rows: dict[str, Mapping[str, float | None]] = {name: PUBLISHED[name] for name in COMPARED}
    names = [result.benchmark for result in shown]  # one may be there twice, with two splits
    best = [max([result.score, *(row.get(result.benchmark) or 0.0 for row in rows.values())]) or 1.0 for result in shown]
    angles = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    colours = dict(zip(COMPARED, (BLUE, GREEN, SOFT, ORANGE), strict=True))
    with figure(path, 1, 1, (7.2, 6.4), subplot_kw={"projection": "polar"}) as axes:
        axis = axes[0, 0]
        axis.set_theta_offset(np.pi / 2)
        axis.set_theta_direction(-1)
        axis.set_ylim(0, 1)
        axis.set_yticks([0.25, 0.5, 0.75, 1], labels=[])
        axis.spines["polar"].set_color(FAINT)
        axis.set_xticks(angles, labels=[])
        for angle, result in zip(angles, shown, strict=True):
            side = round(float(np.sin(angle)), 3)
            aligned = "center" if abs(side) < 0.1 else "left" if side > 0 else "right"
            words = f"{_title(result)}\n{_shown(result, result.score)}"
            axis.text(angle, 1.09, words, ha=aligned, va="center", color=INK, fontweight="bold")
        for name, row in rows.items():
            values = np.array(
                [np.nan if row.get(name) is None else row[name] / top for name, top in zip(names, best, strict=True)]
            )
            _polygon(axis, angles, values, label=name, color=colours[name], linewidth=1.2, alpha=0.9)
        values = np.array([result.score / top for result, top in zip(shown, best, strict=True)])
        _polygon(axis, angles, values, label=model, color=RED, linewidth=2.4)
        axis.fill(angles, values, color=RED, alpha=0.1)
        axis.figure.legend(loc="outside lower center", ncols=len(rows) + 1, title=RADAR_NOTE, title_fontsize=8)
    return True


def _polygon(axis, angles: np.ndarray, values: np.ndarray, **style) -> None:
    """A closed line with a dot at every score; what is missing leaves a gap."""
    axis.plot(np.append(angles, angles[0]), np.append(values, values[0]), marker="o", markersize=3.5, **style)
