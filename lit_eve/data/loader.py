"""A loader that knows where it is: the same batches after a restart, with other workers, on another number of ranks.

Its whole state is the epoch and the number of *rows* of that epoch which the optimizer has seen, counted over all ranks, up to
the last finished step. So a checkpoint goes on exactly

- with another number of workers: the plan is made here, workers read what they are told;
- on another number of ranks, or with other accumulation, as long as rows x ranks x accumulation stays what it was;
- when it was written in the middle of a step (an exception, a timer): that step is begun again, none of it is lost.

Lightning counts batches by itself; :class:`ExactResume` brings its counters in line with the rows.
"""

from __future__ import annotations

import logging
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from math import inf
from types import FrameType, SimpleNamespace
from typing import Any, Protocol

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, Sampler

from lit_eve.data.dataset import Collate, PackedDataset
from lit_eve.data.lengths import SampleTable
from lit_eve.data.plan import RowPlan, batch_rows, num_batches, num_samples
from lit_eve.data.skips import SkipLog
from lit_eve.errors import ConfigError

log = logging.getLogger(__name__)

Batch = dict[str, Any]


class Progress(Protocol):
    """What the loader asks whoever trains."""

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step."""

    def epoch_length(self, available: int) -> int:
        """Micro-batches that are taken of an epoch."""

    def run_length(self) -> float:
        """Micro-batches that are taken at most, of all epochs."""

    def done(self) -> int:
        """Micro-batches of this epoch that are trained on; one that was handed out may have failed."""


class FitProgress:
    """Progress of ``trainer.fit``."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def accumulate(self) -> int:
        return self.trainer.accumulate_grad_batches

    def epoch_length(self, available: int) -> int:
        return int(min(available, self.trainer.num_training_batches))

    def run_length(self) -> float:
        return inf if self.trainer.max_steps == -1 else self.trainer.max_steps * self.accumulate

    def done(self) -> int:
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.processed


class _Schedule(Sampler[list[np.ndarray]]):
    """The references that go to the workers next; set anew for every pass over the loader."""

    def __init__(self) -> None:
        self.batches: Iterator[list[np.ndarray]] = iter(())

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        return self.batches


class PackedLoader:
    """Micro-batches of this rank, epoch after epoch (keys: :class:`lit_eve.data.dataset.Collate`).

    It is no ``DataLoader``, so that Lightning leaves its sampling alone, but has one inside. Each micro-batch carries
    ``num_targets`` and ``num_images`` of this rank's whole accumulation window: the loader gathers a window before it hands
    out the first of it.

    Args:
        table: the samples.
        plan: the rows of an epoch.
        dataset: reads rows.
        collate: makes a batch of them.
        rows: rows per micro-batch and rank.
        rank: which part of each global micro-batch is ours.
        world_size: number of ranks.
        num_workers: processes that read; 0 reads in this one.
        pin_memory: page-locked batches, faster to copy to a GPU.
        skips: counts and lists samples that cannot be used.
        progress: whoever trains; None counts every batch that was handed out as done.
    """

    def __init__(
        self,
        table: SampleTable,
        plan: Callable[[int], RowPlan],
        dataset: PackedDataset,
        collate: Collate,
        *,
        rows: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
        skips: SkipLog | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.table = table
        self.rows = rows
        self.rank = rank
        self.world_size = world_size
        self.skips = skips
        self.progress = progress
        self.epoch = 0
        self._make_plan = plan
        self._planned: tuple[int, RowPlan] | None = None
        self._start = (0, 0)  # epoch, batch
        self._handed_out = 0
        self._schedule = _Schedule()
        self._reader = DataLoader(
            dataset,
            batch_sampler=self._schedule,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_outlive_signals,
        )
        self._owner = os.getpid()
        weakref.finalize(self, _stop_workers, self._reader, self._owner)

    # ---- size and place

    @property
    def plan(self) -> RowPlan:
        """The rows of the current epoch."""
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = self.epoch, self._make_plan(self.epoch)
        return self._planned[1]

    def __len__(self) -> int:
        """Micro-batches of the current epoch, the same on all ranks."""
        return num_batches(len(self.plan), self.rows, self.world_size)

    @property
    def batch_sampler(self) -> Any:
        """Lightning calls ``batch_sampler.sampler.set_epoch``; with ``sampler`` alone it would ask for more."""
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._handed_out = 0

    @property
    def start(self) -> int:
        """The micro-batch at which the current epoch begins; not 0 only in the epoch that a checkpoint was written in."""
        epoch, batch = self._start
        return batch if epoch == self.epoch else 0

    def state_dict(self) -> dict[str, int]:
        """Where training stands in rows of all ranks, and what that is in batches of this run (``length``: of an epoch)."""
        length = self._epoch_length()
        done = self.progress.done() if self.progress else self._handed_out
        if done < length:
            done -= done % self._accumulate()
        rows = min(done * self.rows * self.world_size, len(self.plan))
        return {
            "epoch": self.epoch,
            "rows": rows,
            "rows_of_epoch": len(self.plan),
            "batches": done,
            "length": length,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the state was taken.

        Raises:
            ConfigError: the state lies inside a global batch of this run.
        """
        self.set_epoch(state["epoch"])
        if state["rows_of_epoch"] != len(self.plan):
            log.warning(
                "the data or its settings changed since the checkpoint (%d rows per epoch instead of %d): epoch %d goes on "
                "after the same number of rows, but some samples may come twice or not at all",
                len(self.plan),
                state["rows_of_epoch"],
                self.epoch,
            )
        global_rows = self.rows * self.world_size
        batch, inside = divmod(state["rows"], global_rows)
        if inside and state["rows"] < len(self.plan):
            raise ConfigError(
                f"the checkpoint stands after {state['rows']} rows of epoch {self.epoch}, no multiple of data.rows x ranks = "
                f"{self.rows} x {self.world_size}; choose them so that rows x ranks x accumulation is what it was"
            )
        self._start = self.epoch, batch + bool(inside)
        self._handed_out = batch + bool(inside)

    # ---- batches

    def __iter__(self) -> Iterator[Batch]:
        """The rest of the current epoch. Nothing is started before the first batch is asked for."""
        start, length = self.start, self._epoch_length()
        self._start = (0, 0)
        self._handed_out = start
        self._schedule.batches = self._references(range(start, length))
        if self.skips is not None:
            run = min(length, self.progress.run_length()) if self.progress else length
            self.skips.expect(*(num_samples(self.plan, end, self.rows, self.rank, self.world_size) for end in (length, run)))
        batches = iter(self._reader)
        while start < length:
            accumulate = self._accumulate()
            end = min(start - start % accumulate + accumulate, length)  # of the window that this micro-batch lies in
            window = [self._received(next(batches)) for _ in range(start, end)]
            totals = {name: sum(batch[name] for batch in window) for name in ("num_targets", "num_images")}
            while window:
                self._handed_out += 1
                yield window.pop(0) | totals
            start = end

    def close(self) -> None:
        """Stop the worker processes; those of a loader that is forgotten are stopped too."""
        _stop_workers(self._reader, self._owner)

    def _references(self, batches: range) -> Iterator[list[np.ndarray]]:
        """What goes to the workers; it must not hold the loader, or nobody could forget that."""
        table, plan, place = self.table, self.plan, (self.rows, self.rank, self.world_size)
        rows = ([plan.row(row) for row in batch_rows(batch, *place)] for batch in batches)
        return ([np.column_stack([table.references(row), plan.seeds(row)]) for row in batch] for batch in rows)

    def _received(self, batch: Batch) -> Batch:
        skipped = batch.pop("skipped")
        if self.skips is not None:
            self.skips.add(skipped, len(batch["sample_ids"]))
        return batch

    def _accumulate(self) -> int:
        return self.progress.accumulate if self.progress else 1

    def _epoch_length(self) -> int:
        return self.progress.epoch_length(len(self)) if self.progress else len(self)


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and a cluster's signals reach workers too, whose owner still has a step to finish; it tells them when to end."""

    def end(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the second time

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _stop_workers(reader: DataLoader, owner: int) -> None:
    """End the workers of a reader; in a fork of the process that started them, only forget them.

    Left to the garbage collector, torch waits five seconds for each: queues among the garbage are closed before it tells the
    workers through them.
    """
    iterator, reader._iterator = reader._iterator, None
    if iterator is None:
        return
    if owner == os.getpid():
        iterator._shutdown_workers()
    else:
        iterator._shutdown = True  # or torch would end those of the other process


class ExactResume(Callback):
    """Brings Lightning's counters of a checkpoint in line with the place where the loader goes on.

    They differ when a step is begun again, when the number of ranks or the accumulation changed, behind the last batch of an
    epoch, and when training was stopped inside an epoch (``max_steps``, ``max_time``): Lightning counts it as one that is over.
    It also hands the loader its state in time: Lightning forgets to where ``estimated_stepping_batches`` was asked for before.

    Args:
        loader: gives the loader of this run, whose state is to be restored.
    """

    def __init__(self, loader: Callable[[], PackedLoader]) -> None:
        self.loader = loader

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        loops = checkpoint.get("loops", {}).get("fit_loop")
        states = loops["state_dict"].get("combined_loader") if loops else None
        if trainer.state.fn != "fit" or not states:
            return
        loader, state = self.loader(), states[0]
        loader.load_state_dict(state)
        batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
        closed = epochs["current"]["processed"] == epochs["current"]["started"]
        finished = state["batches"] >= state["length"]
        if closed and finished:
            for counter in epochs["current"], epochs["total"]:
                counter["completed"] = counter["processed"]
            batches["current"] = dict.fromkeys(batches["current"], 0)
            batches["is_last_batch"] = False
        elif loader.start != state["batches"] or batches["current"]["processed"] != state["batches"]:
            _move(batches, loader.start, again=batches["current"]["processed"] != state["batches"])
        if closed and not finished:
            for counter in epochs["current"], epochs["total"]:
                counter["processed"] = counter["completed"] = counter["started"] - 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Behind the last batch of an epoch the next one begins: Lightning would train it without counting it as begun."""
        loop = trainer.fit_loop
        if loop.restarted_mid_epoch and loop.epoch_progress.current.processed == loop.epoch_progress.current.started:
            loop.reset_restart_stage()


def _move(progress: dict[str, dict[str, int]], batch: int, again: bool) -> None:
    """Set the counters of batches to ``batch``."""
    current, total = progress["current"], progress["total"]
    # what is written in the hooks of a batch does not count it as completed; a step that is begun again has no such batch
    open_batches = 0 if again else current["processed"] - current["completed"]
    step = batch - current["processed"]
    for counter in current, total:
        counter["processed"] += step
        counter["ready"] = counter["started"] = counter["processed"]
        counter["completed"] = counter["processed"] - open_batches
