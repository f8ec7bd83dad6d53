"""What tells runs apart: the settings that differ, the last and the best value of every metric, what it took."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lit_eve.errors import ConfigError
from lit_eve.files import same_path
from lit_eve.sweeps.run_folders.reading import AXES, Run, read_miniature, read_run, short_names, stages_in

WHOLE = "all stages"
"""Title of the comparison of whole miniatures, beside those of their stages."""

_FIRST = ("model", "data", "seed_everything", "trainer", "checkpoint")  # settings, in the order of what matters
_PARTS = ("val/", "test/", "benchmarks/", "train/")  # metrics, likewise

_SEEN = ("data.class_path", "data.template", "data.max_tokens", "data.limit_samples", "model.template", "world.*")
_TEACHER = ("model.teacher*", "teacher.*")


class _Obstacle(NamedTuple):
    """Why metrics of runs say nothing about which is better: one of these settings differs."""

    metrics: tuple[str, ...]
    settings: tuple[str, ...]
    meaning: str


_OBSTACLES = (
    _Obstacle(("val/*",), (*_SEEN, "data.validation", "trainer.limit_val_batches"), "the validation data differ"),
    _Obstacle(("train/*",), (*_SEEN, "data.train*", "trainer.limit_train_batches"), "the training data differ"),
    _Obstacle(("*/alignment_loss",), _TEACHER, "the teachers differ"),
    _Obstacle(("*/loss",), ("model.alignment_weight", "model.supervision", *_TEACHER), "it is the sum of other losses"),
    _Obstacle(("question_accuracy", "caption_*", "by_type.*"), ("world.*",), "the test scenes differ"),
)


class Value(NamedTuple):
    """A value of a metric, and the step that it is of; None where a metric has no steps."""

    value: float
    step: int | None


@dataclass(frozen=True)
class Row:
    """One metric of all runs."""

    metric: str
    kind: Literal["last", "best"]
    values: Mapping[str, Value]
    """By name of the run; runs without the metric are left out."""
    best: tuple[str, ...]
    """The runs with the best value; none where no direction is better, or the values cannot be compared."""


@dataclass(frozen=True)
class RunComparison:
    """Some runs, side by side."""

    title: str
    """The stage, where the runs are stages of miniatures; else empty."""
    runs: Mapping[str, Run]
    """By the short names that all other tables use."""
    settings: Mapping[str, Mapping[str, Any]]
    """Those that differ: key -> name of the run -> value; a run without the key is left out."""
    rows: Sequence[Row]
    """A last and, where there is a sensible direction, a best value of every metric."""
    notes: Sequence[str]
    """What a reader must know: what cannot be compared, what is damaged or missing."""

    @property
    def names(self) -> list[str]:
        """The names of the runs."""
        return list(self.runs)

    @property
    def curves(self) -> list[str]:
        """The metrics of training and validation that at least two of the runs have as curves, validation first."""
        tags = _ordered({tag for run in self.runs.values() for tag in run.curves})
        return [
            tag
            for tag in tags
            if tag.startswith(_PARTS) and sum(tag in run.curves for run in self.runs.values()) >= min(2, len(self.runs))
        ]

    def row(self, metric: str, kind: Literal["last", "best"] = "last") -> Row:
        """The row of a metric.

        Raises:
            ConfigError: there is none.
        """
        for row in self.rows:
            if (row.metric, row.kind) == (metric, kind):
                return row
        raise ConfigError(f"no run has a {kind} value of {metric!r}; metrics are {', '.join({r.metric: 0 for r in self.rows})}")


def compare(*runs: Run | str | os.PathLike[str]) -> RunComparison:
    """Compare runs.

    Args:
        runs: at least two, each a folder of ``train.py fit`` or what :func:`read_run` has read.

    Raises:
        ConfigError: there are fewer than two, one is given twice, or a folder is no run.
    """
    folders = [run.folder if isinstance(run, Run) else Path(run) for run in runs]
    _check_folders(folders)
    return _compare(short_names(folders), [run if isinstance(run, Run) else read_run(run) for run in runs])


def compare_all(folders: Sequence[str | os.PathLike[str]]) -> list[RunComparison]:
    """Compare runs, or the outputs of ``lit-eve nano``, whose stages of the same name are compared with each other.

    Returns:
        one comparison, or one for each stage that two outputs have, and one of the outputs as such.

    Raises:
        ConfigError: as :func:`compare`, or runs and outputs are mixed.
    """
    _check_folders([Path(folder) for folder in folders])
    stages = [stages_in(folder) for folder in folders]
    if not any(stages):
        return [compare(*folders)]
    if not all(stages):
        miniature, run = (folders[[bool(s) for s in stages].index(which)] for which in (True, False))
        read_run(run)
        raise ConfigError(
            f"{run} is one run, {miniature} holds the stages {', '.join(stages_in(miniature))}: name one of them, such as "
            f"{Path(miniature, stages_in(miniature)[-1])}"
        )
    names, comparisons = short_names(folders), []
    outputs = [read_miniature(folder) for folder in folders]
    around = list(_different(names, outputs))
    for stage in dict.fromkeys(sorted(name for of_one in stages for name in of_one)):
        having = [index for index, of_one in enumerate(stages) if stage in of_one]
        if len(having) >= 2:
            runs = [read_run(Path(folders[index], stage), of_miniature=True) for index in having]
            comparisons.append(_compare([names[index] for index in having], runs, stage, around))
    return [_compare(names, outputs, WHOLE), *comparisons]


def direction(metric: str) -> Literal["lower", "higher"] | None:
    """Which values of a metric are better; None where nobody can say."""
    name = metric.lower()
    if any(word in name for word in ("blind", "shuffled", "baselines", "gradient")):
        return None
    if any(word in name for word in ("loss", "perplexity", "error")):
        return "lower"
    return "higher" if any(word in name for word in ("accuracy", "benchmarks/")) else None


def _check_folders(folders: Sequence[Path]) -> None:
    if len(folders) < 2:
        raise ConfigError(f"a comparison takes at least two runs, got {', '.join(map(str, folders)) or 'none'}")
    places: dict[str, Path] = {}
    for folder in folders:
        place = os.path.realpath(os.path.expanduser(folder))
        if place in places:
            other = places[place]
            raise ConfigError(f"{folder} is given twice" + (f": {other} is the same folder" if other != folder else ""))
        places[place] = folder


def _compare(names: Sequence[str], runs: Sequence[Run], title: str = "", around: Sequence[str] = ()) -> RunComparison:
    """Compare runs; ``around`` are keys that differ in what the runs are made from."""
    by_name, settings = dict(zip(names, runs, strict=True)), _different(names, runs)
    differing = [*settings, *around]
    metrics = _ordered({tag for run in runs for tag in (*run.curves, *run.numbers)} - set(AXES.values()))
    hindered, notes = set(), []
    for one in _OBSTACLES:
        keys, hit = _matching(differing, one.settings), set(_matching(metrics, one.metrics))
        if keys and not hit <= hindered:
            shown = f"{', '.join(one.metrics)}: not comparable, as {one.meaning} ({', '.join(keys)})"
            notes.append(f"{shown}; no run is marked as the best.")
            hindered |= hit
    rows = [row for metric in metrics for row in _rows(metric, by_name, metric not in hindered)]
    for name, run in by_name.items():
        if not run.curves and not run.numbers:
            notes.append(f"{name} has logged nothing yet.")
        if run.damaged:
            notes.append(f"{name}: {run.damaged} damaged row{'s' * (run.damaged > 1)} of metrics.csv left out.")
    return RunComparison(title, by_name, settings, rows, notes)


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


def _different(names: Sequence[str], runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The settings in which not all runs agree."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    found = {key: {n: run.settings[key] for n, run in zip(names, runs, strict=True) if key in run.settings} for key in keys}
    place = {section: number for number, section in enumerate(_FIRST)}
    different = [key for key, values in found.items() if len(values) < len(runs) or not _all_same(list(values.values()))]
    return {key: found[key] for key in sorted(different, key=lambda key: (place.get(key.split(".")[0], len(place)), key))}


def _all_same(values: Sequence[Any]) -> bool:
    return all(_same(values[0], value) for value in values[1:])


def _same(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; a path may be written in several ways."""
    if isinstance(one, str) and isinstance(other, str):
        return one == other or ("/" in one + other and same_path(one, other))
    return type(one) is type(other) and one == other or (_is_number(one) and _is_number(other) and one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ordered(metrics: set[str]) -> list[str]:
    """Validation first, training behind it, then all others; the language loss first, and last what cannot be good or bad."""

    def place(metric: str) -> tuple[int, bool, bool, int, str]:
        part = next((index for index, part in enumerate(_PARTS) if metric.startswith(part)), len(_PARTS))
        return part, direction(metric) is None, not metric.endswith("language_loss"), metric.count("."), metric

    return sorted(metrics, key=place)


def _rows(metric: str, runs: Mapping[str, Run], comparable: bool) -> list[Row]:
    better = direction(metric)
    last, best = {}, {}
    for name, run in runs.items():
        if metric in run.numbers:
            last[name] = Value(run.numbers[metric], None)
        elif metric in run.curves:
            steps, values = run.curves[metric]
            last[name] = Value(float(values[-1]), int(steps[-1]))
            finite = [(float(value), int(step)) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
            if better is not None and finite:
                best[name] = Value(*(min if better == "lower" else max)(finite, key=lambda point: point[0]))
    rows = [Row(metric, "last", last, _winners(last, better if comparable else None))]
    if best:
        rows.append(Row(metric, "best", best, _winners(best, better if comparable else None)))
    return rows


def _winners(values: Mapping[str, Value], better: str | None) -> tuple[str, ...]:
    """Who has the best value; nobody where there is no competition."""
    finite = {name: value.value for name, value in values.items() if math.isfinite(value.value)}
    if better is None or len(values) < 2 or not finite:
        return ()
    choose: Callable[..., float] = min if better == "lower" else max
    winning = choose(finite.values())
    winners = tuple(name for name, value in finite.items() if value == winning)
    return winners if len(winners) < len(values) else ()
