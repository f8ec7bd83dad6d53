"""What becomes of the answers to benchmark questions: kept as they come (test), or scored and logged (validation)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_eve.data import PromptBatch
from lit_eve.errors import LitEveError
from lit_eve.evaluation.answers import note_missing
from lit_eve.evaluation.benchmarks import Problems
from lit_eve.evaluation.results import rate_answers
from lit_eve.evaluation.run import EvaluationRun, Unusable
from lit_eve.evaluation.tasks import Task
from lit_eve.training.distributed import gather_objects
from lit_eve.training.record import log_scalars


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
    """Score the answers of each validation, over all ranks, as an evaluation does.

    Logged are ``benchmarks/pope``, the headline score, ``pope/accuracy/random``, ..., and ``pope/answered``, how many questions
    the scores are over.

    Args:
        tasks: what is asked.
        unusable: by task and id, why questions are not asked.
        allow_partial: score without the questions that could not be asked, and warn of them; else they are an error. Where
            nothing is left to score, only ``answered`` is logged.
    """

    def __init__(self, tasks: Sequence[Task], unusable: Mapping[str, Unusable], allow_partial: bool = False) -> None:
        self.tasks = {task.name: task for task in tasks}
        self.unusable = unusable
        self.allow_partial = allow_partial
        self._answers: dict[str, dict[Hashable, str]] = {}
        self._unusable: dict[str, Unusable] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._answers = {name: {} for name in self.tasks}
        self._unusable = {name: dict(self.unusable[name]) for name in self.tasks}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the answers that count."""
        if isinstance(batch, PromptBatch) and batch.source in self.tasks:
            questions = self.tasks[batch.source].questions
            for index, answer in counted(batch, outputs["answers"]).items():
                self._answers[batch.source][questions[index].id] = answer
            for index, reason in batch.errors.items():
                self._unusable[batch.source][questions[index].id] = reason

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score and log.

        Raises:
            LitEveError: questions have no answer, unless ``allow_partial`` is set.
        """
        if trainer.sanity_checking or trainer.fast_dev_run:  # a few batches, to see that they work
            return
        ranks = gather_objects((self._answers, self._unusable))
        for name, task in self.tasks.items():
            answers = {id: answer for kept, _ in ranks for id, answer in kept[name].items()}
            problems = Problems()
            unusable = {id: reason for _, lost in ranks for id, reason in lost[name].items()}
            note_missing("validation", task, answers, problems, unusable)
            scored = task.scored(answers)
            if problems and not self.allow_partial:
                raise LitEveError(f"{task.benchmark.title}: {problems}; allow_partial of the benchmarks scores the rest")
            if problems:
                rank_zero_warn(f"{task.benchmark.title}: {len(scored):,} of {len(task.questions):,} questions; {problems}")
            logged = {f"{name}/answered": float(len(scored))}
            if scored:
                headline, scores = rate_answers(task.benchmark, scored, answers)
                logged[f"benchmarks/{name}"] = scores.pop(headline)
                logged |= {f"{name}/{key}": value for key, value in scores.items() if value == value}
            log_scalars(pl_module, logged)


def counted(batch: PromptBatch, answers: Sequence[str]) -> dict[int, str]:
    """The answers that count, by the index of the question."""
    rows = zip(batch.indices, answers, batch.counts, strict=True)
    return {index: answer for index, answer, counts in rows if counts}
