"""A callback that kills its process the hard way; runs name it on their command line."""

from __future__ import annotations

import os
import signal

from lightning.pytorch import Callback

from lit_eve.training.callbacks import checkpoint


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
