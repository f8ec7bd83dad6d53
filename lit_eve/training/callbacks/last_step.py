"""The last step of a run is validated, wherever it falls."""

from __future__ import annotations

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


class LastValidation(Callback):
    """Validate at the end of a run where the trainer's interval does not."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Know the interval, which is changed for the last step."""
        self._every = trainer.check_val_every_n_epoch

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
