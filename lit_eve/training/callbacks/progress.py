"""Progress where there is no terminal: one line per log interval."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar

from lit_eve.data import PromptBatch


class LineProgress(ProgressBar):
    """Print the progress bar's numbers as lines, for log files."""

    def __init__(self) -> None:
        super().__init__()
        self._printed = 0
        self.enable()

    def enable(self) -> None:
        """Print from now on."""
        self._enabled = True

    def disable(self) -> None:
        """Stay silent from now on (the trainer does this on all ranks but the first)."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._first, self._start = trainer.global_step, time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The line of the step before, whose numbers are complete now."""
        self._print_step(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same; validation may come between two steps."""
        self._print_step(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The line of the last step."""
        self._print_step(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line per validation."""
        if not trainer.sanity_checking:
            self.print(f"step {trainer.global_step}  {self._numbers('val')}")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Some ten lines per loader."""
        done, total = batch_idx + 1, int(trainer.num_test_batches[dataloader_idx])
        if done == total or done % max(1, total // 10) == 0:
            name = batch.source if isinstance(batch, PromptBatch) else ""
            self.print(f"test  {name}  {done}/{total} batches")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print, unless disabled."""
        if self._enabled:
            print(*args, **kwargs, flush=True)

    def _print_step(self, trainer: Trainer) -> None:
        step = trainer.global_step
        due = step % trainer.log_every_n_steps == 0 or step == trainer.estimated_stepping_batches
        if step != self._printed and due and (numbers := self._numbers("train", "speed")):
            self.print(f"step {step}/{trainer.estimated_stepping_batches:g}  {numbers}{self._left(trainer)}")
            self._printed = step

    def _left(self, trainer: Trainer) -> str:
        """How long the rest takes if it goes on as until now, validations included."""
        done, left = trainer.global_step - self._first, trainer.estimated_stepping_batches - trainer.global_step
        if done < 1 or not 0 < left < float("inf"):
            return ""
        seconds = round(left * (time.perf_counter() - self._start) / done)
        days, rest = divmod(seconds, 86400)
        clock = f"{rest // 3600}:{rest // 60 % 60:02d}:{rest % 60:02d}"
        return f"  {f'{days} d ' if days else ''}{clock} left"

    def _numbers(self, *groups: str) -> str:
        metrics = {key: float(value) for key, value in self.trainer.progress_bar_metrics.items()}
        return "  ".join(f"{key} {value:.4g}" for key, value in metrics.items() if key.split("/")[0] in groups)


def progress_callback() -> Callback:
    """A rich progress bar on a terminal, lines elsewhere."""
    return RichProgressBar(leave=True) if sys.stdout.isatty() else LineProgress()
