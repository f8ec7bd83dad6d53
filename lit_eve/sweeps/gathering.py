"""What finished trials have measured, from the folders of their tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from lit_eve.errors import ConfigError
from lit_eve.records import METRICS_CSV, SECONDS, STEP, read_rows
from lit_eve.sweeps.report import results
from lit_eve.sweeps.trials import EVALUATION, Task, Trial

PARTS = ("patch_embedding.", "projector.", "language_model.")
RECORD, ANSWERS, VALIDATION = "metrics.json", "answers.jsonl", "val/"


def gather(trials: Sequence[Trial], flops_per_step: Mapping[tuple[str, str], float] | None = None) -> list[results.Trial]:
    """What the finished ones of these trials have measured.

    Args:
        flops_per_step: by arm and stage, where it is known.
    """
    return [_gather(trial, flops_per_step or {}) for trial in trials if trial.is_done]


def _gather(trial: Trial, flops_per_step: Mapping[tuple[str, str], float]) -> results.Trial:
    metrics: dict[str, float] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    records = {task.kind: _record(task.folder) for task in trial.stage_tasks}
    flops = 0.0
    for task in trial.stage_tasks:
        record = records[task.kind]
        metrics |= {f"{task.kind}/{tag}": value for tag, value in record["metrics"].items() if tag.startswith(VALIDATION)}
        curves |= {f"{task.kind}/{tag}": curve for tag, curve in _curves(task.folder).items()}
        flops += record["step"] * flops_per_step.get((trial.arm.name, task.kind), float("nan"))
    answers = None
    if (task := trial.tasks.get(EVALUATION)) is not None:
        metrics |= _record(task.folder)["metrics"]
        answers = _answers(task)
    last = records[trial.stage_tasks[-1].kind]
    return results.Trial(
        arm=trial.arm.name,
        seed=trial.seed,
        metrics=metrics,
        steps=sum(record["step"] for record in records.values()),
        flops=None if flops != flops else flops,
        seconds=sum(record["seconds"] for record in records.values()),
        core_seconds=sum(task.journal.core_seconds(task.step) for task in trial.stage_tasks),
        commit=last["versions"]["commit"],
        machine=last["machine"]["accelerator"] or last["machine"]["processor"],
        parameters=_parameters(trial.stage_tasks[-1].folder),
        curves=curves,
        answers=answers,
    )


def running_curve(trial: Trial, tag: str) -> list[tuple[int, float]]:
    """A metric of the last stage's validations, also while it runs: their numbers from 1, and values."""
    curve = _curves(trial.stage_tasks[-1].folder).get(tag, [])
    return [(number, value) for number, (_, value) in enumerate(curve, 1)]


def seconds_per_step(task: Task) -> float:
    """What a step of a training takes: the median over the lines of its log, after the first one, which has the start in it.

    Raises:
        ConfigError: there are fewer than two lines.
    """
    rows = read_rows(task.folder / METRICS_CSV)[0]
    lines = sorted({int(row[STEP]): float(row[SECONDS]) for row in rows if SECONDS in row}.items())
    if len(lines) < 2:
        raise ConfigError(f"{task.name}: its log has fewer than two lines with {SECONDS}: set trainer.log_every_n_steps lower")
    return median((after - before) / (step - last) for (last, before), (step, after) in pairwise(lines))


def _parameters(run: Path) -> int:
    from lit_eve.models.checkpoints.weights import iterate_weights

    weights = iterate_weights(run, shapes_only=True)
    return sum(tensor.numel() for name, tensor in weights if name.startswith(PARTS))


def _record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / RECORD).read_text("utf-8"))


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Every metric of validations, by its tag."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in read_rows(folder / METRICS_CSV)[0]:
        for tag, value in row.items():
            if tag.startswith(VALIDATION):
                found.setdefault(tag, []).append((int(row[STEP]), float(value)))
    return found


def _answers(task: Task) -> list[results.Answer] | None:
    path = task.folder / ANSWERS
    if not path.exists():
        return None
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [results.Answer(row["id"], row["image"], bool(row["right"])) for row in rows]
