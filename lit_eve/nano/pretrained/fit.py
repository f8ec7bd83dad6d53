"""Short Lightning trainings that may be interrupted at any point: the language model's and the teacher's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from lit_eve.training.optimizers import build_optimizer, trained_parameters, warmup_then_cosine

ADAMW = {"name": "adamw", "betas": [0.9, 0.98]}
MUON = {"name": "muon", "adamw_lr_factor": 0.4, "betas": [0.9, 0.98]}


@contextmanager
def one_core() -> Iterator[None]:
    """Calculate on one core.

    Models of this size are slower on two, measured 141 ms instead of 90 for a step of stage 3: splitting and joining costs more
    than the work. The other core is free for data and a second training, and results do not depend on the number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Steps:
    """The batches of a run, one per step.

    Batch number i is ``make(i)`` and nothing else, so that a run goes on exactly where it was from the number of batches that
    it has seen: Lightning saves and restores it through `state_dict`.
    """

    def __init__(self, make: Callable[[int], Any], total: int) -> None:
        self.make = make
        self.total = total
        self.seen = 0

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Any]:
        while self.seen < self.total:
            self.seen += 1
            yield self.make(self.seen - 1)

    def state_dict(self) -> dict[str, int]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


def optimize(
    module: LightningModule, optimizer: Mapping[str, Any], lr: float, steps: int, warmup: float = 0.05, floor: float = 0.02
) -> dict[str, Any]:
    """The optimizer of that name over all parameters, with warm-up and cosine, as ``configure_optimizers`` returns it."""
    trained = trained_parameters(module, {name: lr for name, _ in module.named_parameters()})
    made = build_optimizer(optimizer, trained)
    schedule = warmup_then_cosine(made, steps, warmup, floor)
    return {"optimizer": made, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(module: LightningModule, make_batch: Callable[[int], Any], steps: int, folder: Path, checkpoint_every: int) -> None:
    """Train for ``steps`` batches, from the last checkpoint in ``folder`` if there is one.

    Leaves ``folder/checkpoints/last.ckpt`` and ``folder/tensorboard``.
    """
    last = folder / "checkpoints" / "last.ckpt"
    checkpoints = ModelCheckpoint(
        last.parent, filename="last", every_n_train_steps=checkpoint_every, enable_version_counter=False
    )
    trainer = Trainer(
        max_steps=steps,
        accelerator="auto",
        devices=1,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        callbacks=[checkpoints, RichProgressBar(refresh_rate=10)],
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    with one_core():
        trainer.fit(module, Steps(make_batch, steps), ckpt_path=last if last.exists() else None, weights_only=True)
