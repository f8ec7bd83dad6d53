"""The frame of a short training that may be interrupted at any point: the language model's and the teacher's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lit_eve.nano.progress import is_done, mark_done
from lit_eve.nano.world.tokenizer import make_tokenizer
from lit_eve.training.optimizers import build_optimizer, trained_parameters, warmup_then_cosine

ADAMW = {"name": "adamw", "betas": [0.9, 0.98]}
MUON = {"name": "muon", "adamw_lr_factor": 0.4, "betas": [0.9, 0.98]}
WARMUP = 0.05  # of the steps
FLOOR = 0.02  # of the peak learning rate, at the end


class TrainingSettings(Protocol):
    """What the frame reads of a dataclass of settings; the rest is the model's and the data's."""

    steps: int
    lr: float
    optimizer: Mapping[str, Any]
    seed: int
    checkpoint_every: int


class LitPretrained(LightningModule, ABC):
    """A model that EVE starts from: its data, its loss, how good it is. `train` does the rest.

    Args:
        settings: of the model and its training.
        tokenizer: turns texts into ids.
    """

    def __init__(self, settings: TrainingSettings, tokenizer: Any) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = tokenizer

    @abstractmethod
    def batches(self, data: Path) -> Callable[[int], Any]:
        """Training batch number i as a function of i and nothing else, made of the data sets in ``data``."""

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The scalar to minimise."""

    @abstractmethod
    def evaluate(self, data: Path) -> dict[str, float]:
        """How good the trained model is on held-out data, by name; called on the CPU, in evaluation mode, without gradients."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write what transformers loads from ``folder``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        """The optimizer of the settings over all parameters, with warm-up and cosine."""
        lr = {name: self.settings.lr for name, _ in self.named_parameters()}
        optimizer = build_optimizer(self.settings.optimizer, trained_parameters(self, lr))
        schedule = warmup_then_cosine(optimizer, self.settings.steps, WARMUP, FLOOR)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(model: type[LitPretrained], settings: TrainingSettings, data: Path, folder: Path) -> Path:
    """Train a model, evaluate it and save it in ``folder``, with its results in ``done.json``.

    Goes on from its last checkpoint; does nothing when it is done.

    Args:
        model: the class.
        settings: what the class is made with.
        data: folder of the data sets.
        folder: of the trained model.

    Returns:
        ``folder``.

    Raises:
        ConfigError: ``folder`` holds a model made with other settings.
    """
    if is_done(folder, settings):
        return folder
    seed_everything(settings.seed, verbose=False)
    module = model(settings, make_tokenizer())
    fit(module, module.batches(data), folder)
    module.cpu().eval()
    with torch.no_grad():
        results = module.evaluate(data)
    module.save(folder)
    mark_done(folder, settings, results)
    return folder


def fit(module: LitPretrained, make_batch: Callable[[int], Any], folder: Path) -> None:
    """Train on batches 0, 1, ..., from the last checkpoint in ``folder`` if there is one.

    Leaves ``folder/checkpoints/last.ckpt`` and ``folder/tensorboard``.
    """
    settings = module.settings
    last = folder / "checkpoints" / "last.ckpt"
    checkpoints = ModelCheckpoint(
        last.parent, filename="last", every_n_train_steps=settings.checkpoint_every, enable_version_counter=False
    )
    trainer = Trainer(
        max_steps=settings.steps,
        accelerator="auto",
        devices=1,
        logger=TensorBoardLogger(folder, name="tensorboard", version=""),
        callbacks=[checkpoints, RichProgressBar(refresh_rate=10)],
        gradient_clip_val=1.0,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    with one_core():
        resumed = last if last.exists() else None
        trainer.fit(module, Batches(make_batch, settings.steps), ckpt_path=resumed, weights_only=True)


class Batches:
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
