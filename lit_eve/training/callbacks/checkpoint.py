"""Checkpoints that survive a kill at any moment, and the search for the one to go on from."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.files import local_path
from lit_eve.models.checkpoints.sharded import is_sharded, read_checkpoint
from lit_eve.training.callbacks.validation import is_last_step, is_validation_due, validate_now
from lit_eve.training.fsdp import FSDP2Strategy
from lit_eve.training.sharded_checkpoint import not_written, read_whole_checkpoint

FOLDER = "checkpoints"
_VALIDATION_DUE = "validation_due"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write beside the target, then rename: under its final name a file is always whole.

    Lightning's own goes through a buffer in memory and, depending on where temporary files live, a copy that a kill can cut
    in two.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save ``checkpoint`` to the local file ``path``; what stood there stays until the new file is complete."""
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            raise not_written(path, error) from error
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a file, or the folder that a sharded run wrote.

        Raises:
            CheckpointError: it holds more than tensors and plain values.
        """
        if is_sharded(path):
            return read_whole_checkpoint(path)
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error


class RunCheckpoint(ModelCheckpoint):
    """Save the run every N optimizer steps and at its end, to resume from.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: how many of the newest checkpoints stay; -1 keeps all.
    """

    def __init__(self, every_n_steps: int = 500, keep: int = 1) -> None:
        super().__init__(
            filename="step{step:08.0f}",
            auto_insert_metric_name=False,
            save_top_k=-1,  # see _save_checkpoint
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )
        if every_n_steps < 1:
            raise ConfigError(f"checkpoint.every_n_steps must be at least 1, got {every_n_steps}")
        if keep == 0 or keep < -1:
            raise ConfigError(f"checkpoint.keep must be at least 1, or -1 for all, got {keep}")
        self.keep = keep
        self._validation_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save below the run's folder."""
        self.dirpath = os.path.join(trainer.default_root_dir, FOLDER)
        super().setup(trainer, pl_module, stage)
        if trainer.is_global_zero and stage == "fit":
            for part in Path(self.dirpath).glob(".*.part"):
                shutil.rmtree(part) if part.is_dir() else part.unlink()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has saved its first step already; it validates that step, if it did not before."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step
        if self._validation_due:  # now, and not in the loop: Lightning knows no way back to a validation behind an epoch
            self._validation_due = False
            validate_now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the run, wherever it falls."""
        self.save_now(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every so many steps; the last step is saved when it was validated."""
        if not is_last_step(trainer):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether this step is still to be validated: Lightning takes it for one that was."""
        checkpoint[_VALIDATION_DUE] = is_validation_due(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Know whether its step is still to be validated."""
        self._validation_due = trainer.state.fn == "fit" and checkpoint.get(_VALIDATION_DUE, False)

    def save_now(self, trainer: Trainer) -> None:
        """Save the run as it stands, if it was not saved at this step; return when that is complete."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
        if isinstance(trainer.strategy, FSDP2Strategy):  # which writes in the background
            trainer.strategy.wait_for_checkpoint()
            self._drop_older(trainer)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        # Lightning would keep the checkpoint that a run resumed from, and those of a run that was killed while it saved.
        super()._save_checkpoint(trainer, filepath)
        self._drop_older(trainer)

    def _drop_older(self, trainer: Trainer) -> None:
        if self.keep != -1:
            for path in sorted(Path(self.dirpath).glob("*.ckpt"), key=step_of)[: -self.keep]:
                trainer.strategy.remove_checkpoint(path)


def find_checkpoint(folder: str | Path) -> Path | None:
    """The newest whole checkpoint in the run folder ``folder``; None if there is none.

    A checkpoint is a file, or the folder of a sharded one. What cannot be read to its end is passed over.
    """
    candidates = [path for path in Path(folder, FOLDER).glob("*.ckpt") if _is_whole(path)]
    return max(candidates, key=step_of, default=None)


def checkpoint_at(path: str) -> Path:
    """The checkpoint at a path that a user gave: itself, or the newest in a run folder.

    Raises:
        ConfigError: there is none.
    """
    if path in ("best", "hpc") or path.startswith("registry"):
        raise ConfigError(f"ckpt_path: {path!r} is not kept here; give a checkpoint, a run folder, or last")
    place = Path(local_path(path, "ckpt_path"))
    if not place.exists():
        raise ConfigError(f"ckpt_path: there is no {path!r}")
    found = place if _is_whole(place) else find_checkpoint(place)
    if found is None:
        what = "holds no whole checkpoint" if place.is_dir() else "is no checkpoint, or only part of one"
        raise ConfigError(f"ckpt_path: {path!r} {what}")
    with suppress(CheckpointError):  # of what holds objects of one's own, and is read if weights_only is false
        content = read_checkpoint(found)
        if not isinstance(content, dict) or "pytorch-lightning_version" not in content:
            raise ConfigError(f"ckpt_path: {path!r} is no checkpoint of a training; weights alone are given as model.init_from")
    return found


def step_of(path: Path) -> int:
    """The optimizer step that a checkpoint's name tells; -1 if it tells none."""
    match = re.search(r"step=?(\d+)", path.stem)
    return int(match[1]) if match else -1


def _is_whole(path: Path) -> bool:
    if path.is_dir():
        return is_sharded(path)
    return zipfile.is_zipfile(path)  # the directory of a zip is its end
