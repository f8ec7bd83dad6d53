"""The answers of ``train.py predict`` as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_eve.data import EveDataModule
from lit_eve.errors import LitEveError
from lit_eve.files import write_atomically
from lit_eve.training.distributed import gather_objects


class PredictionWriter(BasePredictionWriter):
    """Write ``<run>/predictions.jsonl``: one line per sample, from all ranks."""

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")

    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: list[Any], batch_indices: list[Any]
    ) -> None:
        """Collect what all ranks answered; write it on the first, in the order of the samples.

        Raises:
            LitEveError: no sample could be asked.
        """
        ranks = [[row for batch in rank for row in batch] for rank in gather_objects(predictions)]
        rows = [row for turn in zip(*ranks, strict=True) for row in turn]
        if isinstance(data := trainer.datamodule, EveDataModule):  # past these, ranks answered to be as many as the others
            rows = rows[: len(data.samples("test", data.limit_samples))]
        path = Path(trainer.default_root_dir, "predictions.jsonl")
        if trainer.is_global_zero:
            write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if rows and all("error" in row for row in rows):
            raise LitEveError(f"none of the {len(rows)} samples can be asked ({path} says why); the first: {rows[0]['error']}")
        rank_zero_info(f"{len(rows)} answers written to {path}")
