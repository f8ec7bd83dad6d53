"""Ctrl-C, and the signal that a cluster sends before it takes the machine away: save, then stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_eve.training.callbacks.checkpoint import RunCheckpoint
from lit_eve.training.callbacks.validation import is_last_step


class Stopped(Exception):
    """Training was told to stop, and did.

    Args:
        signum: the signal.
        message: where it stands.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class StopOnSignal(Callback):
    """At SIGINT (Ctrl-C), SIGTERM or, under SLURM, SIGUSR1: finish the micro-batch, save a checkpoint, raise :class:`Stopped`.
    The last step of a run is no place to stop at: it is validated and saved, and the run is finished.

    With several processes all stop after the same optimizer step: the one that began when the signal came, or the next. They
    agree by a message between their hosts, sent beside each step, which no device waits for. During a validation they stop when
    it is over. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._old: dict[int, Any] = {}
        self._vote: tuple[torch.Tensor, Any] | None = None
        self._group: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take out Lightning's own handlers."""
        # Lightning's own would ask the first process before every micro-batch, which makes the host wait for the device, and
        # would write a checkpoint in the middle of whatever happens at that time.
        trainer._signal_connector.register_signal_handlers = lambda: None
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more."""
        self._listen_no_more()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Listen no more: there may be no teardown."""
        self._listen_no_more()

    def _listen(self, rank: int) -> None:
        self._signum, self._owner, self._rank = None, os.getpid(), rank
        if threading.current_thread() is threading.main_thread():  # no other can
            signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
            self._old = {signum: signal.signal(signum, self._hear) for signum in signals}

    def _listen_no_more(self) -> None:
        while self._old:
            signal.signal(*self._old.popitem())

    def _hear(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a worker that inherited this: its owner tells it when to end
            return
        if self._signum is not None:
            self._listen_no_more()
            signal.raise_signal(signum)
            return
        self._signum = signum
        if self._rank == 0:
            name = signal.Signals(signum).name
            os.write(2, f"\n{name}: this step is finished and saved; once more ends at once\n".encode())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, and prepare the messages between hosts. Until now there was nothing to save."""
        self._step, self._vote = trainer.global_step, None
        self._group = dist.new_group(backend="gloo") if trainer.world_size > 1 else None
        self._listen(trainer.global_rank)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop, if all have agreed to."""
        if self._group is None:
            if self._signum is not None:
                self._stop(trainer, self._signum)
            return
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        agreed = self._agreed()
        vote = torch.tensor([self._signum or 0])
        self._vote = (vote, dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._group, async_op=True))
        if agreed:
            self._stop(trainer, agreed)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave no message on its way, and listen no more."""
        self._agreed()
        self._listen_no_more()

    def _agreed(self) -> int:
        """The signal that a process had heard of at the step before; 0: none."""
        if self._vote is None:
            return 0
        (vote, sent), self._vote = self._vote, None
        sent.wait()
        return int(vote)

    def _stop(self, trainer: Trainer, signum: int) -> None:
        self._agreed()
        if is_last_step(trainer):
            return
        where = "nothing was saved"
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, RunCheckpoint):
                callback.save_now(trainer)
                where = "the same command goes on from there"
        raise Stopped(signum, f"stopped at step {trainer.global_step}; {where}")
