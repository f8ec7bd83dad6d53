"""``metrics.json``: how a run stands, in numbers, and what they come from."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_eve.files import write_atomically
from lit_eve.training.record import environment, last_values

FILE = "metrics.json"


class RunRecord(Callback):
    """Write ``<run>/metrics.json`` at every validation, at the end and when a run stops early.

    It holds the newest value of every scalar, the step, whether the run is finished, the seconds of training that are in its
    weights (steps that a kill lost do not count), the seeds, the commit and versions, and the machine.
    """

    def __init__(self) -> None:
        self._before = 0.0  # seconds of training in the checkpoint that was gone on from
        self._start: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The numbers of this validation."""
        if not trainer.sanity_checking:
            self._write(trainer, finished=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last numbers."""
        self._write(trainer, finished=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The numbers until now."""
        self._write(trainer, finished=False)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the time that training took."""
        checkpoint["training_seconds"] = self._seconds

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        self._before = checkpoint.get("training_seconds", 0.0)

    @property
    def _seconds(self) -> float:
        return self._before + (0.0 if self._start is None else time.perf_counter() - self._start)

    def _write(self, trainer: Trainer, finished: bool) -> None:
        if self._start is None or trainer.state.fn != "fit" or trainer.fast_dev_run or not trainer.is_global_zero:
            return
        run, data = Path(trainer.default_root_dir), trainer.datamodule
        seed = os.environ.get("PL_GLOBAL_SEED")
        record = {
            "finished": finished,
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "metrics": last_values(run),
            "seconds": round(self._seconds, 2),
            "devices": trainer.world_size,
            "seeds": {"seed_everything": seed and int(seed), "data": getattr(data, "order_seed", None)},
            **environment(),
        }
        write_atomically(run / FILE, json.dumps(record, indent=2) + "\n")
