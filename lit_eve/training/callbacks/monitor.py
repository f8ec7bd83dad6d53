"""Scalars of the training: losses of the global batch, gradient norm, learning rates, speed, padding, skipped samples."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_eve.data import EveDataModule
from lit_eve.training.distributed import sum_over_ranks

COUNTS = ("tokens", "padding", "images")


class TrainingMonitor(Callback):
    """Log one line of scalars per optimizer step, at the trainer's ``log_every_n_steps``.

    ``train/loss`` (whatever training_step makes it of), ``train/language_loss``, ``train/alignment_loss`` and other losses that
    it returns are those of the global batch, over micro-batches and ranks; ``train/gradient_norm`` is the norm before clipping;
    ``lr/stage`` is the stage's learning rate, beside those of rules that have their own, named by their patterns. ``speed/*``
    and ``data/padding`` count all ranks since the last line.
    Everything stays on the device until a line is due, so that no step waits for it.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._step = trainer.global_step
        self._losses: dict[str, Tensor] = {}
        self._restart()

    def _restart(self) -> None:
        self._counts = dict.fromkeys(COUNTS, 0)
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stopped = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on, as if validation had taken no time."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._start += time.perf_counter() - self._stopped

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: dict[str, Tensor], batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Add up this micro-batch; log when it completes an optimizer step."""
        for name, value in outputs.items():  # the same in all ranks, in the same order
            if isinstance(value, Tensor) and value.ndim == 0:
                self._losses[name] = self._losses.get(name, 0.0) + value
        padding = int(batch["num_padding"])
        self._counts["tokens"] += batch["input_ids"].numel() - padding
        self._counts["padding"] += padding
        self._counts["images"] += len(batch["image_grid_hw"])
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        losses, self._losses = self._losses, {}
        if self._step % trainer.log_every_n_steps:
            return
        self._log(trainer, pl_module, losses)
        self._restart()

    def _log(self, trainer: Trainer, pl_module: LightningModule, losses: dict[str, Tensor]) -> None:
        seconds = time.perf_counter() - self._start
        counts = torch.tensor(list(self._counts.values()), dtype=torch.float64, device=pl_module.device)
        values = sum_over_ranks(torch.cat([torch.stack([*losses.values()]).double(), counts])).tolist()
        named = dict(zip((*losses, *COUNTS), values, strict=True))
        # Lightning has divided what training_step returned by the accumulated batches; the factor of the ranks is still in it.
        pl_module.log("train/loss", named["loss"] / trainer.world_size, prog_bar=True)
        pl_module.log_dict({f"train/{name}": named[name] for name in losses if name != "loss"})
        pl_module.log("train/gradient_norm", pl_module.gradient_norm)
        pl_module.log_dict({f"lr/{group['label']}": group["lr"] for group in trainer.optimizers[0].param_groups})
        pl_module.log("speed/tokens_per_second", named["tokens"] / seconds, prog_bar=True)
        pl_module.log("speed/images_per_second", named["images"] / seconds)
        pl_module.log("data/padding", named["padding"] / (named["tokens"] + named["padding"]))
        if isinstance(trainer.datamodule, EveDataModule):
            pl_module.log("data/skipped", float(trainer.datamodule.num_skipped))
