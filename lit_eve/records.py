"""What runs are compared by: nested settings as flat keys, and the rows of a ``metrics.csv``."""

from __future__ import annotations

import csv
import operator
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS_CSV = "metrics.csv"
STEP = "step"
SECONDS = "speed/seconds"
"""Of training, from its beginning; validations are not in it."""


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` -> ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any], same: Callable[[Any, Any], bool] = operator.eq) -> list[str]:
    """Keys of two nested mappings whose values differ, as "a.b: 1 -> 2", sorted; ``same`` compares two values."""
    old, new = flatten(old), flatten(new)
    missing = object()
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in sorted(old.keys() | new.keys())
        if not same(old.get(key, missing), new.get(key, missing))
    ]


def read_rows(path: Path) -> tuple[list[dict[str, str]], int]:
    """The rows of a ``metrics.csv``, without their empty cells, and how many others there are.

    A crash may cut the last row in two, or leave bytes that are none of a row: whatever is not a step and a number or nothing
    in each other column, with a line's end, is damaged and left out.

    Returns:
        rows by column, with numbers as they are written; the number of damaged rows. No file: no rows.
    """
    if not path.exists():
        return [], 0
    header, *lines = path.read_bytes().decode("utf-8", "replace").split("\n")
    columns, rest = _cells(header), lines.pop() if lines else ""  # the rest has no end
    rows = [dict(zip(columns, cells, strict=True)) for line in lines if _is_whole(columns, cells := _cells(line))]
    return [{column: cell for column, cell in row.items() if cell} for row in rows], len(lines) - len(rows) + bool(rest)


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # such as a NUL
        return []


def _is_whole(columns: Sequence[str], cells: Sequence[str]) -> bool:
    if len(cells) != len(columns) or STEP not in columns:
        return False
    try:
        int(cells[columns.index(STEP)])
        for cell in filter(None, cells):
            float(cell)
    except ValueError:
        return False
    return True
