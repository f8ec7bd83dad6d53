"""A comparison of runs as tables, Markdown and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from lit_eve.sweeps.report.results import short_commit
from lit_eve.sweeps.run_folders.comparison import Row, RunComparison, Value
from lit_eve.sweeps.run_folders.reading import Cost

ABSENT = "-"


class Cell(NamedTuple):
    """A cell of a table."""

    text: str
    is_best: bool = False


class Table(NamedTuple):
    """Rows of cells, the first of which names the row."""

    title: str
    header: list[str]
    rows: list[list[Cell]]


def tables(comparison: RunComparison) -> list[Table]:
    """The settings that differ, the metrics, and the cost; a column per run. Tables without rows are left out."""
    names = comparison.names
    settings = [
        [Cell(key), *(Cell(_setting(values[name]) if name in values else ABSENT) for name in names)]
        for key, values in comparison.settings.items()
    ]
    metrics = [
        [Cell(row.metric), Cell(_kind(row)), *(Cell(_value(row.values.get(name)), name in row.best) for name in names)]
        for row in comparison.rows
    ]
    costs = [[Cell(what), *map(Cell, cells)] for what, cells in _costs([run.cost for run in comparison.runs.values()])]
    found = (
        Table("settings that differ", ["setting", *names], settings),
        Table("metrics", ["metric", "", *names], metrics),
        Table("cost", ["", *names], costs),
    )
    return [table for table in found if table.rows]


def markdown(comparisons: Sequence[RunComparison], figures: Mapping[str, str]) -> str:
    """The comparisons as a Markdown page.

    Args:
        comparisons: what is shown.
        figures: by title of a comparison, the file of its curves.
    """
    lines = ["# Comparison of runs", "", "| run | folder |", "|---|---|"]
    folders = {name: str(run.folder) for one in reversed(comparisons) for name, run in one.runs.items()}
    lines += [f"| {_escaped(name)} | {_escaped(folder)} |" for name, folder in folders.items()]
    for one in comparisons:
        if one.title:
            lines += ["", f"## {one.title}"]
        for note in one.notes:
            lines += ["", _escaped(note)]
        if one.title in figures:
            lines += ["", f"![Curves of all runs]({figures[one.title]})"]
        for table in tables(one):
            left = len(table.header) - len(one.runs)
            lines += ["", f"**{table.title.capitalize()}**" + BEST * (table.title == "metrics"), ""]
            lines += [_line(map(_escaped, table.header)), "|" + "---|" * left + "---:|" * len(one.runs)]
            lines += [_line(f"**{_escaped(text)}**" if best else _escaped(text) for text, best in row) for row in table.rows]
    return "\n".join(lines) + "\n"


BEST = " (step in parentheses; the best run of a row in bold)"


def as_json(comparison: RunComparison) -> dict[str, Any]:
    """Everything in a comparison but its curves; a number that is none is null."""
    return {
        "runs": {name: str(run.folder) for name, run in comparison.runs.items()},
        "settings": comparison.settings,
        "metrics": [
            {
                "metric": row.metric,
                "kind": row.kind,
                "values": {name: _number(value) for name, value in row.values.items()},
                "best": row.best,
            }
            for row in comparison.rows
        ],
        "cost": {name: asdict(run.cost) for name, run in comparison.runs.items()},
        "notes": comparison.notes,
    }


def _costs(costs: Sequence[Cost]) -> list[tuple[str, list[str]]]:
    def seconds(cost: Cost) -> str:
        if cost.seconds is None:
            return ABSENT
        behind = cost.seconds_until is not None and cost.seconds_until != cost.steps
        return f"{cost.seconds:,.1f}" + f" (until step {cost.seconds_until})" * behind

    def count(number: int | None) -> str:
        return ABSENT if number is None else f"{number:,}"

    rows = [
        ("finished", ["yes" if cost.finished else "no" for cost in costs]),
        ("steps", [count(cost.steps) for cost in costs]),
        ("tokens", [count(cost.tokens) for cost in costs]),
        ("seconds", list(map(seconds, costs))),
        ("devices", [count(cost.devices) for cost in costs]),
        ("machine", [cost.machine or ABSENT for cost in costs]),
        ("commit", [short_commit(cost.commit) or ABSENT for cost in costs]),
    ]
    return [(what, cells) for what, cells in rows if any(cell != ABSENT for cell in cells)]


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _value(value: Value | None) -> str:
    if value is None:
        return ABSENT
    number = f"{value.value:,.0f}" if 10_000 <= abs(value.value) < 10**15 else f"{value.value:.4g}"
    return number + (f" ({value.step})" if value.step is not None else "")


def _kind(row: Row) -> str:
    """A metric without steps has one value, which is neither the last nor the best."""
    return row.kind if any(value.step is not None for value in row.values.values()) else ""


def _number(value: Value) -> dict[str, float | int | None]:
    return {"value": value.value if math.isfinite(value.value) else None, "step": value.step}


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"
