"""Where the scalars of a run go: into its folder, and wherever ``trainer.logger`` says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from lit_eve.training.record import MetricsFile


def run_loggers(settings: Mapping[str, Any], after: int) -> list[Logger]:
    """The loggers of a fit: ``metrics.csv`` always, and TensorBoard unless ``trainer.logger`` says otherwise.

    Args:
        settings: of the trainer, instantiated.
        after: the step that the run goes on from; what a killed run logged behind it is dropped.
    """
    run, given = settings["default_root_dir"], settings["logger"]
    if given in (None, True):
        given = [TensorBoardLogger(run, name="tensorboard", version="", default_hp_metric=False, purge_step=after + 1)]
    elif given is False:
        given = []
    else:
        given = [*given] if isinstance(given, list | tuple) else [given]
    return [*(_in_folder(logger, run) for logger in given), MetricsFile(run, after)]


def _in_folder(logger: Logger, run: str) -> Logger:
    """A logger whose ``save_dir`` is "." writes into the run folder, under the name of its kind."""
    if str(logger.save_dir) != ".":
        return logger
    if hasattr(logger, "_save_dir"):
        logger._save_dir = run
    if isinstance(logger, TensorBoardLogger):
        logger._root_dir, logger._name, logger._version = run, "tensorboard", ""
    if isinstance(logger, CSVLogger):  # it empties the folder that it finds: each call has one of its own
        logger._root_dir, logger._name = run, "csv"
    if hasattr(logger, "_wandb_init"):
        logger._wandb_init["dir"] = run
        Path(run).mkdir(parents=True, exist_ok=True)
    return logger
