"""When a run is validated: at parts of an epoch or every so many batches, and at its last step."""

from __future__ import annotations

import sys
from math import inf
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


def is_last_step(trainer: Trainer) -> bool:
    """Whether training ends with the micro-batch that was just trained on, by ``max_steps`` or ``max_epochs``."""
    loop = trainer.fit_loop
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    return trainer.current_epoch + 1 == loop.max_epochs and loop.epoch_loop._num_ready_batches_reached()


def is_validation_due(trainer: Trainer) -> bool:
    """Whether the optimizer step that was just completed is still to be validated.

    False outside the hooks of a training batch's end: before them it is too early to say, after them it is done.
    """
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress.current
    if batches.completed == batches.processed or loop._should_accumulate():
        return False
    return bool(loop._should_check_val_fx(trainer.fit_loop._data_fetcher))


def validate_now(trainer: Trainer) -> None:
    """Validate in the middle of a fit, as Lightning's loop does behind a training batch."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False  # from the first batch on
    trainer.validating = True
    loop.run()
    trainer.training = True


class ValidationSchedule(Callback):
    """Validate at exact parts of an epoch, and at the end of a run where the trainer's interval does not.

    Where ``val_check_interval`` is a part of an epoch, its k-th validation follows micro-batch round(k * interval * batches):
    the last one falls on the end. Lightning rounds the interval itself down: the fourth quarter of 1709 batches would be over
    after 1708. An interval in batches is taken at its word.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know whether the batch that a resumed run goes on from was validated; keep what is changed for the last step."""
        _plan(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.ready)
        self._every = trainer.check_val_every_n_epoch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before any callback asks at the end of this batch whether it is to be validated."""
        _plan(trainer, batch_idx + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A trainer that shall stop validates before it does, in every epoch that is to be validated: this one is."""
        if is_last_step(trainer):
            trainer.should_stop = True
            trainer.check_val_every_n_epoch = 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the trainer as it was."""
        trainer.check_val_every_n_epoch = self._every


def _plan(trainer: Trainer, batch: int) -> None:
    """Have the trainer validate after this micro-batch of the epoch (from 1), or not, if the interval is a part of an epoch."""
    if trainer.val_check_batch in (None, inf) or isinstance(trainer.val_check_interval, int):  # by time; of unknown length
        return
    interval = max(1.0, trainer.val_check_interval * trainer.num_training_batches)
    is_due = round(round(batch / interval) * interval) == batch
    trainer.val_check_batch = 1 if is_due else sys.maxsize  # every so many batches
