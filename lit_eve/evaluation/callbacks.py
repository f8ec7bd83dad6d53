"""What becomes of the answers to benchmark questions: kept as they come (test), or scored and logged (validation)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_eve.data import PromptBatch
from lit_eve.evaluation.run import EvaluationRun
from lit_eve.evaluation.tasks import Task


class KeepAnswers(Callback):
    """Append every answer to the files of this rank, at once.

    Args:
        run: where they go.
    """

    def __init__(self, run: EvaluationRun) -> None:
        self.run = run

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write the answers that count."""
        if isinstance(batch, PromptBatch):
            self.run.keep(batch.source, counted(batch, outputs["answers"]), batch.errors)


class ScoreAnswers(Callback):
    """Score the answers of each validation, over all ranks, and log ``benchmarks/pope`` and ``pope/accuracy/random``, ...

    Args:
        tasks: what is asked.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.metrics = {task.name: task.benchmark.metric(task.questions) for task in tasks}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, on the device: ranks add up what they have there."""
        for metric in self.metrics.values():
            metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Score the answers that count."""
        if not isinstance(batch, PromptBatch) or batch.source not in self.tasks:
            return
        for line in batch.errors:
            rank_zero_warn(f"not asked: {line}")
        questions, answers = self.tasks[batch.source].questions, counted(batch, outputs["answers"])
        self.metrics[batch.source].update([questions[index].id for index in answers], list(answers.values()))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores, those of categories too."""
        if trainer.sanity_checking:
            return
        for name, metric in self.metrics.items():
            scores = metric.compute()
            headline = {f"benchmarks/{name}": scores.pop(metric.headline)}
            pl_module.log_dict(
                headline | {f"{name}/{key}": value for key, value in scores.items() if value == value},
                sync_dist=False,  # compute() has added up the ranks
                rank_zero_only=False,
            )


def counted(batch: PromptBatch, answers: Sequence[str]) -> dict[int, str]:
    """The answers that count, by the index of the question."""
    rows = zip(batch.indices, answers, batch.counts, strict=True)
    return {index: answer for index, answer, counts in rows if counts}
