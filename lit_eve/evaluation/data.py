"""``BenchmarkData``: benchmarks as test loaders of their own, or as validation loaders beside a training's data."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from filelock import FileLock
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.progress import track
from torch.utils.data import DataLoader

from lit_eve.data import prompt_loader, share_prompts
from lit_eve.errors import ConfigError, LitEveError, SampleError
from lit_eve.evaluation.benchmarks import Benchmark
from lit_eve.evaluation.callbacks import KeepAnswers, ScoreAnswers
from lit_eve.evaluation.judge import OpenAIJudge, ReplyCache
from lit_eve.evaluation.report import print_table
from lit_eve.evaluation.run import (
    MODEL,
    EvaluationRun,
    Unusable,
    check_folder,
    check_settings,
    claim,
    fingerprint,
    lock_folder,
    unlock_folder,
)
from lit_eve.evaluation.tasks import Task, find_tasks, load_tasks
from lit_eve.files import local_path
from lit_eve.processing import Sample
from lit_eve.training.distributed import gather_objects

T = TypeVar("T")
JUDGE = "judge.jsonl"
PATIENCE = 60.0  # seconds in which a file of another node must appear
_CHUNK = 2048  # prompts that are measured between two steps of the progress bar


class BenchmarkData(LightningDataModule):
    """Questions of benchmarks, in batches of like length.

    Under ``test`` all answers are kept in the trainer's ``default_root_dir``, as they come, and scored at the end; called
    again, only what has no answer yet is asked. Under ``validate`` and ``fit`` only the scores are logged.

    Args:
        path: holds a folder of official files for each benchmark (docs/evaluation.md); null: only files of one's own are asked.
        benchmarks: ``all``, or a list of names: ``pope``, ``vqav2:val`` (a split of it), ``questions.jsonl`` (a file of one's
            own), ...
        limit: ask so many questions of each, evenly spread; null: all.
        batch_size: prompts per device. It does not change greedy answers.
        max_new_tokens: length of the longest answer; null: the benchmark's own.
        template: how conversations are written; null: the model's own template.
        num_workers: processes per device that read and resize images.
        allow_partial: leave out questions that cannot be used and score without missing answers; the table says so.
        judge: the model that grades answers to MM-Vet, and reads those to MMBench that rules cannot read, as
            {url: "https://api.openai.com/v1"}; its replies are kept in ``judge.jsonl``. null: MM-Vet is not scored. It is not
            asked under ``validate`` and ``fit``.
        name: the model's name in files and tables; null: the last part of its path.

    Raises:
        ConfigError: an unknown benchmark, or files that are missing, all of them named.
    """

    def __init__(
        self,
        path: str | None = None,
        benchmarks: str | list[str] = "all",
        limit: int | None = None,
        batch_size: int = 16,
        max_new_tokens: int | None = None,
        template: str | dict[str, Any] | None = None,
        num_workers: int = 2,
        allow_partial: bool = False,
        judge: OpenAIJudge | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("limit", limit), ("batch_size", batch_size), ("max_new_tokens", max_new_tokens)):
            if value is not None and value < 1:
                raise ConfigError(f"{key} of the benchmarks must be at least 1, got {value}")
        if num_workers < 0:
            raise ConfigError(f"num_workers of the benchmarks must be at least 0, got {num_workers}")
        self.path = None if path is None else local_path(path, "data.path")
        self.benchmarks = benchmarks
        self.limit = limit
        self.batch_size = batch_size
        self.max_new_tokens = max_new_tokens
        self.template = template
        self.num_workers = num_workers
        self.allow_partial = allow_partial
        self.judge = judge
        self.name = name
        self.tasks: list[Task] = []
        self.run: EvaluationRun | None = None
        self._loaders: list[DataLoader] | None = None
        self._attached: tuple[Trainer, Callback] | None = None
        self._lock: FileLock | None = None

    # ---- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Read the questions, and add the callback that keeps or scores the answers.

        Raises:
            LitEveError: as in :func:`find_tasks` and :func:`load_tasks`; prompts that cannot be used; a folder that holds
                other answers; a trainer that would ask only some questions.
        """
        self._detach()  # after an error there was no teardown
        trainer = self.trainer
        _check_all_batches(trainer, "limit_test_batches" if stage == "test" else "limit_val_batches")
        try:
            trainer.lightning_module.processor.answer_end(self.template)  # says whether the template can be used
        except ConfigError as error:
            raise ConfigError(f"template of the benchmarks: {error}") from error
        found = find_tasks(self.benchmarks, self.path, while_training=stage != "test")
        unjudged = [benchmark.title for benchmark, _ in found if type(benchmark).judge is not Benchmark.judge]
        if stage != "test" and self.judge is not None and unjudged:
            rank_zero_warn(f"judge of the benchmarks: a validation asks none, and {unjudged[0]} is scored by its rules alone")
        self.tasks = load_tasks(
            found, self.path, limit=self.limit, allow_partial=self.allow_partial, progress=trainer.is_global_zero
        )
        known: dict[str, set[Hashable]] = {task.name: set() for task in self.tasks}
        if stage == "test" and not trainer.fast_dev_run:  # which sees that batches work, and leaves nothing behind
            self._check_shared(Path(trainer.default_root_dir))
            self.run = EvaluationRun(trainer.default_root_dir, self.tasks, self._model_name(), trainer.global_rank)
            known = self._on_first_rank(self._open)
        loaders, unusable = {}, {}
        for task in self.tasks:
            loaders[task.name], unusable[task.name] = self._loader(task, known[task.name])
        self._loaders = [loader for loader in loaders.values() if loader is not None]
        if self.run is not None:
            self.run.unusable = unusable
            callback = KeepAnswers(self.run)
        else:
            callback = ScoreAnswers(self.tasks, unusable, self.allow_partial)
            for task in self.tasks:
                if task.problems:
                    rank_zero_warn(f"{task.benchmark.title}: left out: {task.problems}")
        trainer.callbacks = [*trainer.callbacks, callback]
        self._attached = trainer, callback

    def val_dataloader(self) -> list[DataLoader]:
        return list(self._loaders or [])

    def test_dataloader(self) -> list[DataLoader]:
        """The batches of questions that have no answer yet, once the folder is that of these weights.

        Raises:
            ConfigError: it holds the answers of others.
        """
        if self.run is not None:
            weights = fingerprint(self.trainer.lightning_module.model, self.trainer.global_rank)
            settings = self._settings() | {"weights": weights}
            self._on_first_rank(lambda: claim(self.run.output, settings))
        return list(self._loaders or [])

    def on_exception(self, exception: BaseException) -> None:
        """Leave the trainer as it was."""
        self._detach()

    def teardown(self, stage: str) -> None:
        """Score what was answered, on one rank."""
        run = self.run
        try:
            unusable = gather_objects(run.unusable) if run else []  # also waits until all ranks have written their answers
            if run is not None and self.trainer.is_global_zero:
                results = run.finish(unusable, self.judge, self.allow_partial)
                print_table(results, run.model, run.output)
        finally:
            self._detach()

    # ---- parts

    def _detach(self) -> None:
        """Take the callback off its trainer again, and let others into the folder."""
        if self._attached is not None:
            trainer, own = self._attached
            trainer.callbacks = [callback for callback in trainer.callbacks if callback is not own]
        if self._lock is not None:
            unlock_folder(self._lock)
        self.run = self._loaders = self._attached = self._lock = None

    def _loader(self, task: Task, known: set[Hashable]) -> tuple[DataLoader | None, Unusable]:
        """The batches of this rank, of the questions that have no answer yet, None if there is none; and which are unusable."""
        samples = task.samples()
        places = [place for place, question in enumerate(task.questions) if question.id not in known]
        lengths = dict(zip(places, self._count_tokens(task, [samples[place] for place in places]), strict=True))
        usable = [(place, length) for place, length in lengths.items() if isinstance(length, int)]
        unusable = {task.questions[place].id: str(error) for place, error in lengths.items() if isinstance(error, SampleError)}
        if not usable:
            return None, unusable
        ranks = self.trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        rows = share_prompts([length for _, length in usable], self.batch_size, ranks["rank"], ranks["num_replicas"])
        loader = prompt_loader(
            samples,
            [[(usable[index][0], counts) for index, counts in row] for row in rows],
            self.trainer.lightning_module.processor,
            self.template,
            self.max_new_tokens or task.benchmark.max_new_tokens,
            num_workers=self.num_workers,
            source=task.name,
        )
        return loader, unusable

    def _count_tokens(self, task: Task, samples: Sequence[Sample]) -> list[int | SampleError]:
        """Lengths of prompts, each measured by one rank, or why they cannot be used, unless that is an error."""
        trainer = self.trainer
        rank, world = trainer.global_rank, trainer.world_size
        own = samples[rank::world]
        starts = range(0, len(own), _CHUNK)
        processor = trainer.lightning_module.processor
        title = f"measuring the questions of {task.benchmark.title}"
        measured: list[int | SampleError] = []
        for start in track(starts, title, disable=rank > 0 or len(starts) < 2, transient=True):
            chunk = own[start : start + _CHUNK]
            measured += processor.count_tokens_batch(chunk, template=self.template, with_labels=False)
        lengths: list[int | SampleError] = [0] * len(samples)
        for other, part in enumerate(gather_objects(measured)):
            lengths[other::world] = part
        bad = [str(length) for length in lengths if isinstance(length, SampleError)]
        if bad and not self.allow_partial:
            more = f"; and {len(bad) - 1:,} more" if len(bad) > 1 else ""
            raise LitEveError(f"{task.benchmark.title}: {bad[0]}{more}; allow_partial of the benchmarks scores the rest")
        return lengths

    def _check_shared(self, output: Path) -> None:
        """Raise ConfigError unless the first rank sees what all others write: it gathers their answers in the end."""
        trainer = self.trainer
        if trainer.world_size == 1:
            return

        def begin() -> str:
            check_folder(output)
            return uuid4().hex

        mark = output / f".{self._on_first_rank(begin)}"
        own, error = mark.with_suffix(f".{trainer.global_rank}"), None
        try:
            own.touch()
        except OSError as raised:
            error = raised.strerror
        ranks = gather_objects((platform.node(), error))
        try:
            self._on_first_rank(lambda: _check_marks(mark, ranks))
        finally:
            with suppress(OSError):
                own.unlink()

    def _open(self) -> dict[str, set[Hashable]]:
        """Look into the folder: the ids that have answers in it, by task."""
        self._lock = lock_folder(self.run.output)
        check_settings(self.run.output, self._settings())
        if self.judge is not None and self.judge.cache.path is None:
            self.judge.check()
            self.judge.cache = ReplyCache(self.run.output / JUDGE)
        return {store.task.name: set(store.known()) for store in self.run.stores}

    def _settings(self) -> dict[str, Any]:
        """What decides about the answers beside the weights, which are known later."""
        source, processor = self._weights(), self.trainer.lightning_module.processor
        return {
            MODEL: str(Path(source).resolve() if source is not None and Path(source).exists() else source),
            "geometry": processor.geometry.to_dict(),
            "template": self.template or processor.template,
            "max_new_tokens": self.max_new_tokens,
            "precision": self.trainer.precision,
        }

    def _on_first_rank(self, work: Callable[[], T]) -> T:
        """The result of ``work``, done by the first rank alone; what it raises, all ranks raise."""
        result, error = None, None
        if self.trainer.is_global_zero:
            try:
                result = work()
            except Exception as raised:  # of any kind: the other ranks wait
                error = raised
        result, told = self.trainer.strategy.broadcast((result, None if error is None else str(error)))
        if told is not None:
            raise error or LitEveError(told)
        return result

    def _weights(self) -> str | Path | None:
        return self.trainer.ckpt_path or self.trainer.lightning_module.hparams.get("init_from")

    def _model_name(self) -> str:
        """The last words of the path that tell something: of ``runs/nano/model``, nano."""
        source = self._weights()
        if self.name or source is None:
            return self.name or "untrained"
        parts = [part for part in Path(source).parts if part not in ("model", "checkpoints", "/")]
        return parts[-1] if parts else str(source)


def _check_all_batches(trainer: Trainer, key: str) -> None:
    """Raise ConfigError if a trainer would ask the first questions alone: the longest, of each benchmark."""
    limit = getattr(trainer, key)
    no_validation = limit == 0 and key == "limit_val_batches"
    if not (trainer.fast_dev_run or no_validation or (isinstance(limit, float) and limit == 1)):
        raise ConfigError(
            f"trainer.{key}={limit} would cut off questions of the benchmarks, which begin with the longest: set their limit "
            "instead"
        )


def _check_marks(mark: Path, ranks: Sequence[tuple[str, str | None]]) -> None:
    """Raise ConfigError unless each rank's file is here, by its node and what went wrong there; it may appear late."""
    deadline = time.monotonic() + PATIENCE
    for rank, (node, error) in enumerate(ranks):
        while error is None and not os.path.exists(mark.with_suffix(f".{rank}")):
            if time.monotonic() > deadline:
                error = "what is written there does not appear here"
            time.sleep(0.1)
        if error is not None:
            raise ConfigError(
                f"{mark.parent} on {node} is not the folder of the first process ({error}): give one that all share"
            )
