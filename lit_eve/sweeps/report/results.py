"""What trials came to, as tidy tables: ``results.csv``, a row per trial and metric, and ``curves.csv``, a row per step."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lit_eve.errors import ConfigError
from lit_eve.files import write_atomically

RESULTS, CURVES = "results.csv", "curves.csv"
COLUMNS = (
    "trial",
    "arm",
    "seed",
    "metric",
    "value",
    "steps",
    "flops",
    "seconds",
    "core_seconds",
    "commit",
    "machine",
    "parameters",
)
CURVE_COLUMNS = ("arm", "seed", "metric", "step", "value")

Curves = Mapping[str, Sequence[tuple[int, float]]]  # of each metric, (step, value) in the order of the steps


class Answer(NamedTuple):
    """One answer of a trial's model to one test question."""

    question: str
    """Its id, the same for all arms of a seed."""
    image: str
    """The id of the image that it is about."""
    is_right: bool


@dataclass(frozen=True)
class Trial:
    """One arm, trained with one seed."""

    arm: str
    seed: int
    metrics: Mapping[str, float]
    steps: int
    """Optimizer steps of all stages."""
    flops: float | None
    """Of the training; None: not known."""
    seconds: float
    """From beginning to end; other processes stretch them."""
    core_seconds: float
    """Seconds of a core: waiting is not counted."""
    commit: str | None
    machine: str
    parameters: int | None = None
    """Of the model that the last stage saved, without what is for training alone; None: not known."""
    curves: Curves = field(default_factory=dict)
    answers: Sequence[Answer] | None = None
    """To the test questions; None: there are none."""

    @property
    def name(self) -> str:
        """``ARM/seed_N``."""
        return trial_name(self.arm, self.seed)


def trial_name(arm: str, seed: int) -> str:
    """``ARM/seed_N``: the folder of a trial inside the folder of its ablation."""
    return f"{arm}/seed_{seed}"


def short_commit(commit: str | None) -> str | None:
    """The first ten digits, with "+changes" where files differ from the commit."""
    if commit is None:
        return None
    digits, plus, changes = commit.partition("+")
    return digits[:10] + plus + changes


def write_csv(path: Path, trials: Iterable[Trial]) -> None:
    """Write a row per trial and metric, with :data:`COLUMNS`. What is not known is an empty cell."""
    shared = COLUMNS[5:]
    rows = [
        (trial.name, trial.arm, trial.seed, metric, value, *(getattr(trial, name) for name in shared))
        for trial in trials
        for metric, value in trial.metrics.items()
    ]
    _write(path, COLUMNS, rows)


def write_curves(path: Path, trials: Iterable[Trial]) -> None:
    """Write a row per trial, metric and step, with :data:`CURVE_COLUMNS`."""
    rows = [
        (trial.arm, trial.seed, metric, step, value)
        for trial in trials
        for metric, curve in trial.curves.items()
        for step, value in curve
    ]
    _write(path, CURVE_COLUMNS, rows)


def read_csv(path: Path) -> list[Trial]:
    """The trials of :func:`write_csv`, without curves and answers, which are not in that file.

    Raises:
        ConfigError: there is no such file, or it is another one.
    """
    trials: dict[str, dict[str, Any]] = {}
    for row in _read(path, COLUMNS):
        of_trial = trials.setdefault(row["trial"], {**row, "metrics": {}})
        of_trial["metrics"][row["metric"]] = float(row["value"])
    return [
        Trial(
            row["arm"],
            int(row["seed"]),
            row["metrics"],
            int(row["steps"]),
            float(row["flops"]) if row["flops"] else None,
            float(row["seconds"]),
            float(row["core_seconds"]),
            row["commit"] or None,
            row["machine"],
            int(row["parameters"]) if row["parameters"] else None,
        )
        for row in trials.values()
    ]


def read_curves(path: Path) -> dict[tuple[str, int], dict[str, list[tuple[int, float]]]]:
    """The curves of :func:`write_curves` by arm and seed.

    Raises:
        ConfigError: there is no such file, or it is another one.
    """
    curves: dict[tuple[str, int], dict[str, list[tuple[int, float]]]] = {}
    for row in _read(path, CURVE_COLUMNS):
        curve = curves.setdefault((row["arm"], int(row["seed"])), {}).setdefault(row["metric"], [])
        curve.append((int(row["step"]), float(row["value"])))
    return curves


def _write(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")  # floats as repr, so that they come back as they were
    writer.writerow(columns)
    writer.writerows(rows)
    write_atomically(path, buffer.getvalue())


def _read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != tuple(columns):
                raise ConfigError(f"{path} must have the columns {', '.join(columns)}")
            return list(reader)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
