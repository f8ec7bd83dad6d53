"""Run folders, as ``train.py fit`` and ``lit-eve nano`` leave them: settings, curves, how far they are; finished or not."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from lit_eve.errors import ConfigError, one_line
from lit_eve.files import local_path
from lit_eve.records import METRICS_CSV, SECONDS, STEP, flatten, read_rows

CONFIG, RECORD = "config.yaml", "metrics.json"
AXES = {"step": STEP, "seconds": SECONDS, "tokens": "data/tokens"}
"""What curves can be drawn along: the column of ``metrics.csv`` that knows it."""

_STAGE = re.compile(r"\d+_\w+")  # not 1_prealign.1, a run that was moved aside
_NO_METRICS = ("seconds", "core_seconds", "machine", "versions")  # of the metrics.json of a miniature


class Curve(NamedTuple):
    """A metric of a run."""

    steps: np.ndarray
    """(N,) int64, optimizer steps, ascending."""
    values: np.ndarray
    """(N,) float64."""


@dataclass(frozen=True)
class Cost:
    """How far a run is, and what that took. None: its files do not say."""

    finished: bool
    steps: int | None = None
    """Optimizer steps until now."""
    tokens: int | None = None
    """Trained on until the newest row of ``metrics.csv``, without padding."""
    seconds: float | None = None
    """Of training, with validations, until ``seconds_until``; of a miniature, of all its parts."""
    seconds_until: int | None = None
    """The step at which ``seconds`` were written."""
    devices: int | None = None
    machine: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Run:
    """What a run folder says."""

    folder: Path
    settings: Mapping[str, Any]
    """By key with dots, as ``train.py`` takes them: ``model.lr``. Paths in the run's own folder begin with "."."""
    curves: Mapping[str, Curve]
    cost: Cost
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Metrics without steps: those of a miniature."""
    damaged: int = 0
    """Rows of ``metrics.csv`` that a crash has damaged; they are in no curve."""

    def along(self, metric: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """A curve over another axis than steps.

        Seconds and tokens are logged in rows of training; a validation between two of them lies between theirs, in proportion
        to its step.

        Args:
            metric: one of ``curves``.
            axis: one of :data:`AXES`.

        Returns:
            (N,) places on the axis, (N,) values.

        Raises:
            ConfigError: the run does not know the axis.
        """
        steps, values = self.curves[metric]
        if axis == STEP:
            return steps, values
        if AXES.get(axis) not in self.curves:
            raise ConfigError(
                f"{self.folder} does not know its {axis}: there is no column {AXES.get(axis)!r} in its {METRICS_CSV}, which "
                "versions of lit_eve before this one did not log"
                if axis in AXES
                else f"there is no axis {axis!r}; the axes are {', '.join(AXES)}"
            )
        known = self.curves[AXES[axis]]
        return np.interp(steps, [0, *known.steps], [0, *known.values]), values


def is_run(folder: Path) -> bool:
    """Whether a folder holds what ``train.py fit`` writes."""
    return (folder / CONFIG).is_file()


def stages_in(folder: str | os.PathLike[str]) -> list[str]:
    """The names of the stages in the output of ``lit-eve nano``; empty where the folder is none."""
    if is_run(folder := Path(folder)) or not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if _STAGE.fullmatch(path.name) and is_run(path))


def read_run(folder: str | os.PathLike[str], of_miniature: bool = False) -> Run:
    """Read the folder of a run, finished or not.

    A run that has logged nothing yet has no curves. Rows of ``metrics.csv`` that a crash has damaged are counted, and left out.

    Args:
        folder: of a ``train.py fit``.
        of_miniature: the run is a stage in the output of ``lit-eve nano``; all paths in that folder count as its own.

    Raises:
        ConfigError: it is no run, or a file of it cannot be read; the message says what is missing or damaged.
    """
    folder = _checked(folder)
    settings = flatten(_load(folder / CONFIG, yaml.safe_load))
    settings = {key.replace(".init_args.", "."): value for key, value in settings.items()}
    own = settings.pop("trainer.default_root_dir", None)
    if isinstance(own, str):
        place = os.path.dirname(own) if of_miniature else own
        settings = {key: _without(value, place) for key, value in settings.items()}
    rows, damaged = read_rows(folder / METRICS_CSV)
    curves = _curves(rows)
    record = _load(folder / RECORD, json.loads) if (folder / RECORD).exists() else {}
    return Run(folder, settings, curves, _cost(folder, record, rows), damaged=damaged)


def read_miniature(folder: str | os.PathLike[str]) -> Run:
    """The output of ``lit-eve nano`` as one run: its world and parts as settings, what it was evaluated by as numbers.

    Raises:
        ConfigError: a file of it cannot be read.
    """
    folder = Path(folder)
    settings: dict[str, Any] = {}
    for path in sorted((folder / "steps").glob("*.json")):
        if not _STAGE.fullmatch(path.stem) and path.stem != "benchmarks":  # stages are compared one by one
            settings |= flatten(_load(path, json.loads).get("settings") or {}, f"{path.stem}.")
    if not (folder / RECORD).exists():
        return Run(folder, settings, {}, Cost(finished=False))
    record = _load(folder / RECORD, json.loads)
    flat = flatten({key: value for key, value in record.items() if key not in _NO_METRICS})
    numbers = {key: float(value) for key, value in flat.items() if isinstance(value, int | float)}
    seconds = record.get("seconds")
    cost = Cost(
        True,
        seconds=seconds.get("total") if isinstance(seconds, dict) else seconds,
        machine=_machine(record),
        commit=(record.get("versions") or {}).get("commit"),
    )
    return Run(folder, settings, {}, cost, numbers)


def short_names(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """What tells folders apart: their paths without the first and last names that all of them have."""
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]
    if len(paths) == 1:
        return [paths[0][-1]]
    shortest = min(map(len, paths))
    same = [len({path[index] for path in paths}) == 1 for index in range(shortest)]
    front = same.index(False) if False in same else shortest
    same = [len({path[-1 - index] for path in paths}) == 1 for index in range(shortest - front)]
    back = same.index(False) if False in same else len(same)
    names = ["/".join(path[front : len(path) - back]) or path[-1] for path in paths]
    return names if len(set(names)) == len(names) else list(map(str, folders))


def _checked(folder: str | os.PathLike[str]) -> Path:
    """The folder of a run, or a sentence that says why it is none."""
    folder = Path(local_path(folder, "a run"))
    if not folder.exists():
        raise ConfigError(f"there is no folder {folder}")
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file; a run is the folder that holds {CONFIG} and {METRICS_CSV}")
    if is_run(folder):
        return folder
    lacking = [name for name in (CONFIG, METRICS_CSV) if not (folder / name).exists()]
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir() and (is_run(path) or stages_in(path)))
    hint = f"; in it are the runs {', '.join(inside[:4])}{', ...' * (len(inside) > 4)}: name those" if inside else ""
    raise ConfigError(f"{folder} is no run: it lacks {' and '.join(lacking)}{hint}")


def _load(path: Path, parse: Any) -> dict[str, Any]:
    try:
        content = parse(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it must be a mapping from names, and is {content!r:.40}")
    return content


def _without(value: Any, place: str) -> Any:
    """A setting in which paths at or below ``place`` begin with "."."""
    if isinstance(value, Mapping):
        return {key: _without(item, place) for key, item in value.items()}
    if isinstance(value, list):
        return [_without(item, place) for item in value]
    if isinstance(value, str) and f"{value}/".startswith(f"{place}/"):
        return f".{value.removeprefix(place)}"
    return value


def _curves(rows: Sequence[Mapping[str, str]]) -> dict[str, Curve]:
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        for tag, text in row.items():
            if tag != STEP:
                points.setdefault(tag, {})[int(row[STEP])] = float(text)
    return {tag: Curve(np.array(sorted(at)), np.array([at[step] for step in sorted(at)])) for tag, at in points.items()}


def _cost(folder: Path, record: Mapping[str, Any], rows: Sequence[Mapping[str, str]]) -> Cost:
    steps = [int(row[STEP]) for row in rows] + ([record["step"]] if "step" in record else [])
    tokens = [int(float(row[AXES["tokens"]])) for row in rows if AXES["tokens"] in row]
    # Before its first validation, a run has no record; the first line of its config names the commit too.
    first = (folder / CONFIG).read_text("utf-8").partition("\n")[0]
    named = re.search(r"^# .*\bcommit (\S+?)(?:,|$)", first)
    return Cost(
        finished=record.get("finished") is True,
        steps=max(steps, default=None),
        tokens=max(tokens, default=None),
        seconds=record.get("seconds"),
        seconds_until=record.get("step"),
        devices=record.get("devices"),
        machine=_machine(record),
        commit=(record.get("versions") or {}).get("commit") or (named and named[1]),
    )


def _machine(record: Mapping[str, Any]) -> str | None:
    machine = record.get("machine") or {}
    if not machine:
        return None
    return machine.get("accelerator") or f"{machine.get('processor')}, {machine.get('cores')} cores"
