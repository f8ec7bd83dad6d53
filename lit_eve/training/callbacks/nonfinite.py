"""Stop a run whose loss or gradient is no number, and say which samples it was computed from."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.training.distributed import gather_objects, sum_over_ranks


class NonFiniteError(LitEveError):
    """A loss or gradient norm became nan or infinite."""


class NonFiniteGuard(Callback):
    """Raise :class:`NonFiniteError` on all ranks when a loss or the gradient norm is not finite on any of them.

    Looking at a number makes the host wait for the device. On the CPU this costs nothing and every step is looked at; on other
    devices numbers are kept there and looked at every ``log_every_n_steps`` steps, when the logs are written anyway, and before
    every checkpoint. So no checkpoint ever holds what came out of such a step; the run resumes from the one before.

    Args:
        every_n_steps: optimizer steps between looks; None chooses as above.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        self.every_n_steps = every_n_steps
        self._kept: list[tuple[str, Tensor, dict[str, list[str]]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the step that the run starts or resumes at."""
        self._step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Tensor],
        batch: dict[str, Any],
        batch_idx: int,
    ) -> None:
        """Keep this micro-batch's numbers; look at all that are kept if it is time."""
        where = f"in epoch {trainer.current_epoch}, batch {batch_idx}, rank {trainer.global_rank}"
        origin = {key: batch[key] for key in ("sample_ids", "shards") if key in batch}
        terms = {name: term.total for name, term in outputs.get("terms", {}).items() if term.weight}
        for name, value in (terms | {"loss": outputs["loss"]}).items():  # the sum last: its parts say more
            self._kept.append((f"{name.replace('_', ' ')} {where}", value, origin))
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        self._kept.append((f"gradient norm {where}", pl_module.gradient_norm, origin))
        if self._step % (self.every_n_steps or (1 if pl_module.device.type == "cpu" else trainer.log_every_n_steps)) == 0:
            self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look before anything is saved."""
        self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        kept, self._kept = self._kept, []
        if not kept:
            return
        bad = torch.stack([value.detach().float() for _, value, _ in kept]).isfinite().logical_not()
        if not sum_over_ranks(bad.sum()).item():
            return
        first = next((entry for entry, is_bad in zip(kept, bad.tolist(), strict=True) if is_bad), None)
        reports = [report for report in gather_objects(first and _describe(*first)) if report]
        raise NonFiniteError(f"training stopped before step {trainer.global_step + 1}: {'; '.join(reports)}")


def _describe(what: str, value: Tensor, origin: dict[str, list[str]]) -> str:
    samples = ", ".join(map(str, origin.get("sample_ids", []))) or "unknown"
    shards = ", ".join(sorted(set(map(str, origin.get("shards", [])))))
    return f"{what} is {value.item()}, samples: {samples}" + (f", from {shards}" if shards else "")
