"""``metrics.csv``: every logged scalar, a row per step."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_eve.files import write_atomically
from lit_eve.records import METRICS_CSV, STEP, read_rows


class MetricsFile(Logger):
    """Write ``<run>/metrics.csv``: the column ``step``, and one per tag; empty where nothing was logged.

    A row is written at once, so that a kill loses none. A run that goes on drops what lies behind its checkpoint, and what is
    logged again at a step takes the place of what was there: no step has two rows.

    Args:
        folder: the run folder.
        after: the step of the checkpoint that is gone on from; 0 begins anew.
    """

    def __init__(self, folder: str | Path, after: int = 0) -> None:
        super().__init__()
        self.path, self.after = Path(folder, METRICS_CSV), after
        self._columns: list[str] | None = None
        self._last: dict[str, str] = {}
        self._last_at = 0  # byte at which the last row begins

    @property
    def name(self) -> str:
        """Shown by Lightning."""
        return METRICS_CSV

    @property
    def version(self) -> str:
        """There is one per run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write the row of a step, or add to it if it is the last."""
        if self._columns is None:
            self._write_all(_rows(self.path, self.after))
        row = {STEP: str(int(step or 0)), **{tag: repr(float(value)) for tag, value in metrics.items() if tag != "epoch"}}
        again = self._last.get(STEP) == row[STEP]
        row = self._last | row if again else row
        if row.keys() - set(self._columns):
            rows = _rows(self.path)
            self._write_all([*(rows[:-1] if again else rows), row])
            return
        data = _line(self._columns, row)
        with self.path.open("r+b") as file:
            self._last_at = self._last_at if again else file.seek(0, os.SEEK_END)
            file.seek(self._last_at)
            file.write(data)
            file.truncate()
        self._last = row

    def _write_all(self, rows: list[dict[str, str]]) -> None:
        self._columns = list(dict.fromkeys([STEP, *(tag for row in rows for tag in row)]))
        lines = [_line(self._columns, dict(zip(self._columns, self._columns, strict=True)))]
        lines += [_line(self._columns, row) for row in rows]
        write_atomically(self.path, b"".join(lines).decode())
        self._last = rows[-1] if rows else {}
        self._last_at = sum(map(len, lines[:-1]))


def last_values(folder: str | Path) -> dict[str, float]:
    """The newest value of every tag in the ``metrics.csv`` of a run."""
    return {tag: float(text) for row in _rows(Path(folder, METRICS_CSV)) for tag, text in row.items() if tag != STEP}


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of a JSONL whose ``step`` lies behind ``step``, and one that a kill cut in two."""
    if not path.exists():
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)[STEP] <= step]
    if kept != lines:
        write_atomically(path, "".join(kept))


def _rows(path: Path, until: float = float("inf")) -> list[dict[str, str]]:
    """Rows up to a step, without their empty cells; what a crash has damaged is none."""
    return [row for row in read_rows(path)[0] if int(row[STEP]) <= until]


def _line(columns: list[str], row: Mapping[str, str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([row.get(column, "") for column in columns])
    return text.getvalue().encode()
