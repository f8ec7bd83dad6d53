"""Scalars of the training: every part of the loss, gradient norm, learning rates, speed, padding, skipped samples."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_eve.data import EveDataModule
from lit_eve.training.callbacks.validation import is_last_step
from lit_eve.training.distributed import sum_over_ranks
from lit_eve.training.record import log_scalars
from lit_eve.training.term_sums import TermSums

CONSOLE = ("train/loss", "train/language_loss", "speed/tokens_per_second")


class TrainingMonitor(Callback):
    """Log one line of scalars every ``log_every_n_steps`` optimizer steps, and at the last step.

    ``train/loss`` is the mean of what was minimised (whatever training_step makes it of), over all steps since the last line.
    The terms that it is made of, ``train/language_loss``, ``train/alignment_loss`` and those of a subclass, and
    ``train/token_accuracy`` are means over all tokens or all images of these steps. All are of the global batch, over
    micro-batches and ranks. ``train/gradient_norm`` is the last step's, before clipping; ``lr/stage`` is the stage's learning
    rate, beside those of rules that have their own, named by their patterns; ``weight/*`` are the last step's weights of
    supervisions that have a schedule. ``speed/*_per_second`` and ``data/padding`` count all ranks since the last line.
    ``data/tokens`` are those of all ranks, and ``speed/seconds`` the seconds of training without its validations, since the run
    began. Everything stays on the device until a line is due, so that no step waits for it; a checkpoint holds what was added
    up for the next line.
    """

    def __init__(self) -> None:
        self._sums, self._steps, self._loss = TermSums(), 0, 0.0
        self._tokens = self._padding = 0
        self._so_far: dict[str, float] | None = {"tokens": 0, "seconds": 0.0}  # in lines; None: an older version began the run
        self._start: float | None = None
        self._saved: dict[str, Any] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._step = trainer.global_step
        self._begin_step()
        self._begin_line()
        saved, self._saved = self._saved, None
        if saved is None:
            return
        self._steps = saved["steps"]
        self._sums.load(saved["sums"], share=int(trainer.is_global_zero))  # the sums are those of all ranks
        if trainer.is_global_zero:
            self._loss, self._tokens, self._padding = saved["loss"], saved["tokens"], saved["padding"]

    def _begin_step(self) -> None:
        self._step_sums, self._step_loss, self._step_tokens, self._step_padding, self._step_images = TermSums(), 0.0, 0, 0, 0

    def _begin_line(self) -> None:
        self._sums, self._steps, self._loss, self._tokens, self._padding = TermSums(), 0, 0.0, 0, 0
        self._timed_tokens = self._timed_images = 0
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._stopped = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on, as if validation had taken no time."""
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._start += time.perf_counter() - self._stopped

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: dict[str, Any], batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Add up this micro-batch; log when it completes an optimizer step."""
        self._step_loss = self._step_loss + outputs["loss"].detach().float() / trainer.world_size
        self._step_sums.add(outputs.get("terms", {}), batch)
        padding = int(batch["num_padding"])
        self._step_tokens += batch["input_ids"].numel() - padding
        self._step_padding += padding
        self._step_images += len(batch["image_grid_hw"])
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._end_step()
        if self._step % trainer.log_every_n_steps == 0 or is_last_step(trainer):
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The line of the last step, where no one could know that it was: an early stop, or the end of the time."""
        if self._steps:
            self._log(trainer, pl_module, over=True)

    def _end_step(self) -> None:
        self._sums.merge(self._step_sums)
        self._loss = self._loss + self._step_loss
        self._steps += 1
        self._tokens += self._step_tokens
        self._padding += self._step_padding
        self._timed_tokens += self._step_tokens
        self._timed_images += self._step_images
        self._begin_step()

    def _log(self, trainer: Trainer, pl_module: LightningModule, over: bool = False) -> None:
        terms = self._sums.means(pl_module.device)
        loss, tokens, padding, timed_tokens, timed_images = self._over_ranks(
            pl_module, self._loss, self._tokens, self._padding, self._timed_tokens, self._timed_images
        )
        seconds = time.perf_counter() - self._start
        scalars = {f"train/{name}": value for name, value in terms.items()}
        if tokens:  # else all samples were skipped, and 0 would be no loss
            scalars["train/loss"] = loss / self._steps
        if pl_module.gradient_norm is not None:
            scalars["train/gradient_norm"] = float(pl_module.gradient_norm)
        scalars |= {f"lr/{group['label']}": group["lr"] for group in trainer.optimizers[0].param_groups}
        scalars |= {f"weight/{name}": weight for name, weight in pl_module.scheduled_weights(self._step - 1).items()}
        scalars["speed/tokens_per_second"] = timed_tokens / seconds
        scalars["speed/images_per_second"] = timed_images / seconds
        scalars["data/padding"] = padding / (tokens + padding)
        if self._so_far is not None:
            self._so_far = {"tokens": self._so_far["tokens"] + int(tokens), "seconds": self._so_far["seconds"] + seconds}
            scalars |= {"data/tokens": float(self._so_far["tokens"]), "speed/seconds": self._so_far["seconds"]}
        if isinstance(trainer.datamodule, EveDataModule):
            scalars["data/skipped"] = float(trainer.datamodule.num_skipped)
        log_scalars(pl_module, scalars, prog_bar=CONSOLE, over=over)
        self._begin_line()

    def _over_ranks(self, pl_module: LightningModule, *values: Tensor | float) -> list[float]:
        device = pl_module.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        return sum_over_ranks(torch.stack([torch.as_tensor(x, dtype=dtype, device=device) for x in values])).tolist()

    # ---- checkpoints

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep what is added up for the next line; a step that is not complete is begun again and counts then."""
        loss, tokens, padding = self._over_ranks(pl_module, self._loss, self._tokens, self._padding)
        sums = self._sums.state(pl_module.device)
        so_far = self._so_far
        if so_far is not None and self._start is not None:
            so_far = {**so_far, "seconds": so_far["seconds"] + time.perf_counter() - self._start}
        checkpoint["training_monitor"] = {
            "steps": self._steps,
            "loss": loss,
            "tokens": int(tokens),
            "padding": int(padding),
            "sums": sums,
            "so_far": so_far,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on with the line that the checkpoint was written in."""
        self._saved = checkpoint.get("training_monitor")
        self._so_far = (self._saved or {}).get("so_far")
