"""A LightningModule that remembers what it was trained on, and runs that train it (see test_resume.py)."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from made_shards import make_processor

from lit_eve.data import EveDataModule


class Recorder(LightningModule):
    """Predicts each supervised token from its place; the loss depends on the data and on all steps before.

    Args:
        processor: as a real model has.
        log: a line of JSON per micro-batch is appended here.
        ask_for_steps: ask for ``estimated_stepping_batches`` while the optimizer is made, as schedules do.
    """

    teacher_grid = None

    def __init__(self, processor: Any, log: Path | None = None, ask_for_steps: bool = True) -> None:
        super().__init__()
        self.processor = processor
        self.log_file = log
        self.ask_for_steps = ask_for_steps
        self.seen: list[dict[str, Any]] = []
        self.validated: list[str] = []
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(512, 8)
        self.head = torch.nn.Linear(8, 1)

    def _sum(self, batch: dict[str, Any]) -> torch.Tensor:
        hidden = self.head(self.table(batch["position_ids"].clamp(max=511)))[..., 0]
        keep = batch["labels"] != -100
        return ((hidden - batch["labels"] / 32000) ** 2 * keep).sum()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        targets = self.trainer.strategy.reduce(batch["num_targets"].float(), reduce_op="sum").clamp(min=1)
        scale = self.trainer.accumulate_grad_batches * self.trainer.world_size
        loss = self._sum(batch) / targets
        entry = {
            "epoch": self.current_epoch,
            "step": self.global_step,
            "batch": batch_idx,
            "rank": self.global_rank,
            "ids": batch["sample_ids"],
            "targets": int(batch["num_targets"]),
            "loss": float(loss.detach()),
            "weight": float(self.head.weight.detach().sum()),
        }
        self.seen.append(entry)
        if self.log_file is not None:
            with open(f"{self.log_file}.{self.global_rank}", "a") as file:
                file.write(json.dumps(entry) + "\n")
        return loss * scale

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated += batch["sample_ids"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.ask_for_steps:
            self.steps = self.trainer.estimated_stepping_batches
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


class Kill(Callback):
    """SIGKILL after so many micro-batches."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.after -= 1
        if self.after == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def train(module: Recorder, data: EveDataModule, folder: Path, ckpt: Path | None = None, **options: Any) -> Trainer:
    """Fit on the CPU, quietly."""
    options = {"max_epochs": 1, "num_sanity_val_steps": 0, "limit_val_batches": 0} | options
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in options.get("callbacks", [])),
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=False)
    return trainer


def run(shards: Path, folder: Path, checkpoint: dict[str, Any], kill: int | None = None, **task: Any) -> None:
    """One run in a process of its own, or its part in one of several.

    Args:
        shards: what it is trained on.
        folder: for checkpoints, and what was seen.
        checkpoint: when one is written.
        kill: SIGKILL after so many micro-batches.
        **task: ``ckpt``, and arguments of ``data`` and of the ``trainer``.
    """
    callbacks: list[Callback] = [ModelCheckpoint(folder / "checkpoints", save_top_k=-1, **checkpoint)]
    if kill is not None:
        callbacks.append(Kill(kill))
    data = EveDataModule(train=str(shards), max_tokens=512, **task["data"])
    module = Recorder(make_processor(), folder / "log.jsonl")
    train(module, data, folder, task.get("ckpt"), callbacks=callbacks, **task["trainer"])
