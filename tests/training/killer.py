"""A callback that kills its process the hard way; runs name it on their command line."""

from __future__ import annotations

import multiprocessing
import os
import signal

from lightning.pytorch import Callback

from lit_eve.training.callbacks import checkpoint


class SignalAt(Callback):
    """A signal that this process and its workers hear in the middle of an optimizer step.

    Args:
        step: number of optimizer steps done.
        signum: the signal.
        rank: the process that hears it.
    """

    def __init__(self, step: int, signum: int, rank: int = 0) -> None:
        self.step, self.signum, self.rank, self.sent = step, signum, rank, False

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step != self.step or trainer.global_rank != self.rank or self.sent:
            return
        self.sent = True
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, self.signum)
        os.kill(os.getpid(), self.signum)


class KillAt(Callback):
    """SIGKILL in the middle of an optimizer step, or of writing a checkpoint.

    Args:
        step: number of optimizer steps done.
        saving: wait for the next checkpoint and kill when half of it is written.
        rank: the process that is killed.
    """

    def __init__(self, step: int, saving: bool = False, rank: int = 0) -> None:
        self.step, self.saving, self.rank = step, saving, rank

    def on_after_backward(self, trainer, pl_module) -> None:
        if trainer.global_step != self.step or trainer.global_rank != self.rank:
            return
        if not self.saving:
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint.torch.save = self._save_half

    def _save_half(self, state, file) -> None:
        file.write(b"PK" + bytes(5000))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
