"""Scalars to every logger, at the optimizer step that they belong to."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from lightning.pytorch import LightningModule


def log_scalars(
    module: LightningModule, scalars: Mapping[str, float], prog_bar: Collection[str] = (), over: bool = False
) -> None:
    """Log ``scalars``, which are the same on all ranks.

    Lightning's own ``log`` writes what belongs to step 10 at step 9, and the last step only if it is a multiple of
    ``log_every_n_steps``. In a fit, loggers are therefore told here. Lightning is told all the same, so that other callbacks,
    ``EarlyStopping`` among them, find the values.

    Args:
        module: the module that is trained or evaluated.
        scalars: tag -> value.
        prog_bar: which of them the console shows.
        over: training is over, so that Lightning takes no more.
    """
    trainer = module.trainer
    fit = trainer.state.fn == "fit"
    if not over:
        for tag, value in scalars.items():
            module.log(tag, value, prog_bar=tag in prog_bar, logger=not fit, sync_dist=not trainer.training)
    if fit and not trainer.sanity_checking:
        for logger in trainer.loggers:
            logger.log_metrics(dict(scalars), step=trainer.global_step)
            logger.save()
