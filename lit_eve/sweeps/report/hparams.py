"""TensorBoard's HParams tab: a run per trial, with what its arm changes and what came of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from lit_eve.sweeps.ablation import SKIP, Ablation, Arm
from lit_eve.sweeps.report.comparison import in_order
from lit_eve.sweeps.report.results import Trial

FOLDER = "tensorboard"
RESULT = "result/"  # before the name of a metric: a curve of a stage may have the same one


def write_hparams(folder: Path, ablation: Ablation, trials: Sequence[Trial]) -> Path:
    """Write ``FOLDER/tensorboard/ARM_seed_N`` for each trial, in place of all that was there.

    A trial's hyperparameters are ``arm``, ``seed`` and the settings that its arm changes, as ``FILE/SETTING``; its results are
    ``result/METRIC``; its curves are scalars of their own names.

    Args:
        folder: of the ablation.
        ablation: its file.
        trials: those that are done.

    Returns:
        The folder for ``tensorboard --logdir``.

    Raises:
        ConfigError: a trial is there twice, or of an arm that the file does not have.
    """
    trials, root = in_order(ablation, trials), folder / FOLDER
    shutil.rmtree(root, ignore_errors=True)
    for trial in trials:
        with SummaryWriter(root / f"{trial.arm}_seed_{trial.seed}") as writer:
            for name, curve in trial.curves.items():
                for step, value in curve:
                    writer.add_scalar(name, value, step)
            settings = {"arm": trial.arm, "seed": trial.seed, **changed_settings(ablation.arm(trial.arm))}
            metrics = {f"{RESULT}{name}": value for name, value in trial.metrics.items()}
            writer.add_hparams(settings, metrics, run_name=".", global_step=trial.steps)  # ".": no folder below the run's
    return root


def changed_settings(arm: Arm) -> dict[str, bool | int | float | str]:
    """``{"2_pretrain/model.lr": 0.001, "1_prealign": "skip"}``: what an arm changes, as TensorBoard can show it."""
    settings = {f"{file}/{name}": value for file, changes in arm.changes.items() for name, value in changes.items()}
    settings |= dict.fromkeys(arm.skipped, SKIP)
    return {name: value if isinstance(value, bool | int | float | str) else _text(value) for name, value in settings.items()}


def _text(value: object) -> str:
    return "null" if value is None else str(value)
