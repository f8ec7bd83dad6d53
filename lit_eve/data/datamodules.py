"""One LightningDataModule per stage; what they take is what ``data:`` in a YAML may hold. They differ in defaults only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from lit_eve.data.checks import accumulation, check_lengths, check_template
from lit_eve.data.dataset import Collate, PackedDataset, StoredSamples, evenly
from lit_eve.data.features import FeatureReader, TeacherFeatures, check_features
from lit_eve.data.lengths import SampleTable, load_table, prepare_shards
from lit_eve.data.loader import ExactResume, FitProgress, PackedLoader
from lit_eve.data.plan import RowPlan, plan_epoch
from lit_eve.data.shards import ShardReader
from lit_eve.data.shards.paths import list_shards
from lit_eve.data.shards.writer import Images, write_shards
from lit_eve.data.skips import SkipLog
from lit_eve.data.source import Source
from lit_eve.errors import ConfigError
from lit_eve.processing import EveProcessor, TeacherGrid


class EveDataModule(LightningDataModule):
    """Packed rows from WebDataset shards, for training, validation and test.

    Args:
        train: shards to train on: a path, or a list of paths and of sources, which have a path and a weight.
        validation: shards for validation, read in storage order, the same in every epoch. None: no validation.
        test: shards for ``test``. None: those for validation.
        template: how conversations are written: ``plain``, ``vicuna_v1``, ``eve_v1``, ``chat`` or another registered one, or
            its name and arguments. None: the model's own.
        max_tokens: tokens of a row. Samples are packed into rows, longer ones are cut.
        rows: rows per device and micro-batch.
        global_batch: rows of an optimizer step, over all devices and micro-batches. How many are accumulated follows from it
            and the number of devices. None: rows x devices x trainer.accumulate_grad_batches.
        validation_rows: the same for validation and test. None: rows.
        limit_samples: use so many samples for validation and test, evenly spread over the shards. None: all.
        shuffle_window: None shuffles and packs over the whole epoch. A number (100000 or so, for disks that are slow at random
            reads) does so within windows of about that many samples, which lie in few shards.
        num_workers: processes per device that read and resize images.
        index_workers: processes that index shards and count their tokens when they are seen for the first time.
        seed: of the order of samples, which depends on it and the epoch, and on nothing else. None: ``seed_everything``.
        max_bad_fraction: end the run when more than this share of the samples cannot be used, or none. Those that cannot are
            skipped and listed in ``skipped.jsonl`` in ``trainer.default_root_dir``.
        benchmarks: more validation loaders, whose prompts are answered: ``lit_eve.evaluation.BenchmarkData`` and its arguments.

    Raises:
        ConfigError: a value that makes no sense, a path without shards, or a shard that cannot be read; it names the key.
    """

    def __init__(
        self,
        train: str | list[str | Source] | None = None,
        validation: str | None = None,
        test: str | None = None,
        template: str | dict[str, Any] | None = None,
        max_tokens: int = 2048,
        rows: int = 1,
        global_batch: int | None = None,
        validation_rows: int | None = None,
        limit_samples: int | None = None,
        shuffle_window: int | None = None,
        num_workers: int = 4,
        index_workers: int = 8,
        seed: int | None = None,
        max_bad_fraction: float = 0.01,
        benchmarks: LightningDataModule | None = None,
    ) -> None:
        super().__init__()
        self.sources = {
            "train": [x if isinstance(x, Source) else Source(x) for x in ([train] if isinstance(train, str) else train or [])],
            "validation": [Source(validation)] if validation else [],
            "test": [Source(path)] if (path := test or validation) else [],
        }
        self.template = template
        self.max_tokens = max_tokens
        self.rows = rows
        self.global_batch = global_batch
        self.validation_rows = validation_rows
        self.limit_samples = limit_samples
        self.shuffle_window = shuffle_window
        self.num_workers = num_workers
        self.index_workers = index_workers
        self.seed = seed
        self.max_bad_fraction = max_bad_fraction
        self.benchmarks = benchmarks
        self.prepare_data_per_node = False  # one process indexes, into the folder that all of them read
        self.processor: EveProcessor | None = None
        self.teacher_grid: TeacherGrid | None = None
        self.teacher_features: TeacherFeatures | None = None
        self.longest_sample: int | None = None
        self.reads_longer_samples = True
        self._tables: dict[str, SampleTable] = {}
        self._feature_types: dict[str, torch.dtype] = {}
        self._loaders: list[PackedLoader] = []
        self._resumed: PackedLoader | None = None
        self._check_values()

    def attach(
        self,
        processor: EveProcessor,
        teacher_grid: TeacherGrid | None = None,
        teacher_features: TeacherFeatures | None = None,
        longest_sample: int | None = None,
        reads_longer_samples: bool = True,
    ) -> EveDataModule:
        """Use this processor. Under a trainer all of these come from the model's attributes of these names.

        Args:
            processor: turns samples into tokens.
            teacher_grid: of the teacher whose pixels batches must hold; None without a teacher.
            teacher_features: that batches must hold instead; they are in the shards.
            longest_sample: how many tokens the decoder was made for; None: any number.
            reads_longer_samples: longer samples are warned of; otherwise they are refused.
        """
        try:
            processor.answer_end(self.template)  # says whether the template can be written with this tokenizer
        except ConfigError as error:
            key = "model.template" if self.template is None else "data.template"
            raise ConfigError(f"{key}: {error}") from error
        self.processor = processor
        self.teacher_grid = teacher_grid
        self.teacher_features = teacher_features
        self.longest_sample = longest_sample
        self.reads_longer_samples = reads_longer_samples
        return self

    def make_samples(self, folder: str) -> Iterable[tuple[Mapping[str, Any], Images]] | None:
        """For a subclass that makes its data itself: the samples of a folder that a split names and that is not there.

        One process calls this, and writes shards of what comes; the folder appears when all of it is written.

        Returns:
            a record and its images for each sample, as :meth:`ShardWriter.write` takes them; None: there are none.
        """
        return None

    # ---- Lightning's hooks

    def prepare_data(self) -> None:
        """Make, index and count what is new, on one process, with progress bars."""
        self._set_accumulation()
        self._attach_model()
        for split in self._splits(self.trainer.state.fn.value if self.trainer else None):
            for source in self.sources[split]:
                if not os.path.lexists(source.path) and (samples := self.make_samples(source.path)) is not None:
                    write_shards(source.path, samples)
            prepare_shards(self._paths(split), self.processor, self.template, self.index_workers, progress=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the indices; list the samples that are known to be unusable."""
        self._set_accumulation()
        self._attach_model()
        for split in self._splits(stage):
            table = self._tables[split] = load_table(self._paths(split), self.processor, self.template)
            if self.teacher_features is not None:
                try:
                    self._feature_types[split] = check_features(table.paths, self.teacher_features)
                except ConfigError as error:
                    raise ConfigError(f"data.{split}: {error}") from error
            if len(table) == len(table.unusable):
                reason = f": {table.unusable[0].reason}" if table.unusable else ""
                raise ConfigError(f"data.{split}: none of its {len(table)} samples can be used{reason}")
            if table.unusable:
                skips = self._skips(table)
                if self.trainer is None or self.trainer.is_global_zero:
                    skips.list(table.unusable)
                skips.judge()
            if table.unknown.unknown:
                rank_zero_warn(f"data.{split}: {table.unknown}")
            check_lengths(split, table, self.max_tokens, self.longest_sample, self.reads_longer_samples)
        if stage in ("fit", "validate") and self.benchmarks is not None:
            self.benchmarks.trainer = self.trainer
            self.benchmarks.setup(stage)
        if stage == "fit":
            check_template(self.processor, self.template)
        if stage == "fit" and self.trainer is not None:
            others = [callback for callback in self.trainer.callbacks if not isinstance(callback, ExactResume)]
            self.trainer.callbacks = [*others, ExactResume(self._resume)]

    def train_dataloader(self) -> PackedLoader:
        loader, self._resumed = self._resumed or self._train_loader(), None
        return loader

    def val_dataloader(self) -> PackedLoader | list[PackedLoader | DataLoader]:
        own = [self._evaluation_loader("validation")] if self.sources["validation"] else []
        loaders = own + (self.benchmarks.val_dataloader() if self.benchmarks is not None else [])
        return loaders[0] if loaders == own and own else loaders

    def test_dataloader(self) -> PackedLoader:
        return self._evaluation_loader("test")

    def on_exception(self, exception: BaseException) -> None:
        """Leave the trainer as it was, and no worker processes: there will be no teardown."""
        if self.benchmarks is not None:
            self.benchmarks.on_exception(exception)
        self._close()

    def teardown(self, stage: str) -> None:
        """Stop worker processes."""
        if self.benchmarks is not None:
            self.benchmarks.teardown(stage)
        self._close()

    def predict_dataloader(self) -> DataLoader:
        """Samples of the test split as they are stored, in lists of ``validation_rows``; the model makes prompts of them.

        Rank r of R takes the samples r, r + R, ... All ranks take equally many, as sharded models need: past the end they begin
        again at the first.
        """
        samples, (rank, world_size) = self.samples("test", self.limit_samples), self._place()
        own = (rank + world_size * np.arange(-(-len(samples) // world_size))) % len(samples)
        return DataLoader(
            StoredSamples(samples.reader, samples.references[own]),
            batch_size=self.validation_rows or self.rows,
            collate_fn=list,
            num_workers=self.num_workers,
        )

    # ---- parts

    @property
    def num_skipped(self) -> int:
        """Samples that could not be used so far: known from the indices, or found while this process was reading."""
        known = sum(len(table.unusable) for table in self._tables.values())
        return known + sum(loader.skips.bad for loader in self._loaders)

    @property
    def order_seed(self) -> int:
        """The seed of the order of samples: ``seed``, or the one that everything has; 0 without either."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def samples(self, split: str, count: int | None = None) -> StoredSamples:
        """So many samples of train, validation or test as they are stored, spread evenly; None: all that can be used."""
        table = self._tables[split]
        return StoredSamples(ShardReader(table.paths), table.references(self._chosen(split, count)))

    def plan(self, split: str, epoch: int = 0) -> RowPlan:
        """The rows of an epoch, over all ranks; ``split`` is train, validation or test."""
        table = self._tables[split]
        if split == "train":
            plan = plan_epoch(
                table.length,
                self.max_tokens,
                sizes=table.source_sizes,
                weights=[source.weight for source in self.sources["train"]],
                seed=self.order_seed,
                epoch=epoch,
                shuffle_window=self.shuffle_window,
            )
            if not len(plan):
                raise ConfigError(f"data.train: epoch {epoch} has no samples: the weights of its sources are too small")
            return plan
        lengths = np.zeros_like(table.length)
        chosen = self._chosen(split, self.limit_samples)
        lengths[chosen] = table.length[chosen]
        return plan_epoch(lengths, self.max_tokens, shuffle=False)

    def _chosen(self, split: str, count: int | None) -> np.ndarray:
        """Numbers of so many samples that can be used, spread evenly; None: of all."""
        return evenly(np.flatnonzero(self._tables[split].length), count)

    def _close(self) -> None:
        self._resumed = None
        while self._loaders:
            self._loaders.pop().close()

    def _resume(self) -> PackedLoader:
        self._resumed = self._train_loader()
        return self._resumed

    def _train_loader(self) -> PackedLoader:
        frozen = self.trainer is not None and self.trainer.overfit_batches > 0  # the same batches again and again
        progress = None if self.trainer is None else FitProgress(self.trainer)
        loader = self._loader("train", self.rows, lambda epoch: self.plan("train", 0 if frozen else epoch), progress)
        table, rows = self._tables["train"], loader.plan
        rank_zero_info(
            f"data.train: {len(table):,} samples, {len(rows.samples):,} of them per epoch in {len(rows):,} rows of "
            f"{self.max_tokens} tokens ({rows.padding(table.length, self.max_tokens):.1%} padding), {len(loader):,} batches"
            f"{self._step_size(rows)}"
        )
        return loader

    def _step_size(self, plan: RowPlan) -> str:
        rows = self.rows * (self.trainer.world_size * self.trainer.accumulate_grad_batches if self.trainer else 1)
        return f", {rows} rows or {rows * len(plan.samples) / max(len(plan), 1):.0f} samples per step"

    def _evaluation_loader(self, split: str) -> PackedLoader:
        plan = self.plan(split)
        return self._loader(split, self.validation_rows or self.rows, lambda epoch: plan, None)

    def _loader(self, split: str, rows: int, plan: Callable[[int], RowPlan], progress: FitProgress | None) -> PackedLoader:
        if split not in self._tables:
            raise ConfigError(f"data.{split} is not set" if not self.sources[split] else "call setup() first")
        table = self._tables[split]
        processor = self.processor
        rank, world_size = self._place()
        tokenizer = processor.tokenizer
        wanted, features, held = self.teacher_features, None, None
        if wanted is not None:
            features = FeatureReader(table.paths, wanted)
            held = self._feature_types[split], (len(wanted.states), wanted.patches, wanted.width)
        loader = PackedLoader(
            table,
            plan,
            PackedDataset(table.paths, processor, self.template, self.max_tokens, self.teacher_grid, features),
            Collate(
                self.max_tokens,
                pad_token_id=next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0),
                patch_dim=processor.geometry.patch_dim,
                image_token_id=processor.image_token_id,
                teacher_image_size=None if self.teacher_grid is None else self.teacher_grid.image_size,
                teacher_features=held,
            ),
            rows=rows,
            rank=rank,
            world_size=world_size,
            num_workers=self.num_workers,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            skips=self._skips(table),
            progress=progress,
        )
        self._loaders.append(loader)
        return loader

    def _place(self) -> tuple[int, int]:
        """Rank and number of ranks that share the data."""
        ranks = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {"rank": 0, "num_replicas": 1}
        return ranks["rank"], ranks["num_replicas"]

    def _skips(self, table: SampleTable) -> SkipLog:
        path = None if self.trainer is None else Path(self.trainer.default_root_dir) / "skipped.jsonl"
        return SkipLog(path, self.max_bad_fraction, known=len(table.unusable) / max(len(table), 1))

    def _paths(self, split: str) -> list[str]:
        for source in self.sources[split]:
            try:
                list_shards(source.path)
            except ConfigError as error:
                raise ConfigError(f"data.{split}: {error}") from None
        return [source.path for source in self.sources[split]]

    def _splits(self, stage: str | None) -> list[str]:
        stages = {"fit": ["train", "validation"], "validate": ["validation"], "test": ["test"], "predict": ["test"]}
        splits = list(self.sources) if stage is None else stages[stage]
        if stage is not None and splits and not (self.sources[splits[0]] or (stage == "validate" and self.benchmarks)):
            raise ConfigError(f"data.{splits[0]} is not set: there is nothing to {stage}")
        return [split for split in splits if self.sources[split]]

    def _attach_model(self) -> None:
        if self.trainer is not None:
            model = self.trainer.lightning_module
            names = ("processor", "teacher_grid", "teacher_features", "longest_sample", "reads_longer_samples")
            self.attach(**{name: getattr(model, name) for name in names if hasattr(model, name)})
        if self.processor is None:
            raise ConfigError("the data needs a processor: give the datamodule to a trainer, or call attach(processor)")

    def _set_accumulation(self) -> None:
        """Tell the trainer how many micro-batches make a global batch."""
        if self.global_batch is not None and self.trainer is not None and self.trainer.state.fn == "fit":
            self.trainer.accumulate_grad_batches = accumulation(self.global_batch, self.rows, self.trainer)

    def _check_values(self) -> None:
        for key in ("max_tokens", "rows", "global_batch", "validation_rows", "limit_samples", "shuffle_window"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"data.{key} must be at least 1, got {value}")
        if self.num_workers < 0:
            raise ConfigError(f"data.num_workers must be at least 0, got {self.num_workers}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"data.max_bad_fraction must lie between 0 and 1, got {self.max_bad_fraction}")
        for source in self.sources["train"]:
            if not source.weight > 0:
                raise ConfigError(f"data.train: the weight of {source.path} must be positive, got {source.weight}")


class PrealignDataModule(EveDataModule):
    """Stage 1, captions: ``template`` is plain unless the YAML says otherwise."""

    def __init__(self, template: str | dict[str, Any] | None = "plain", **kwargs: Any) -> None:
        super().__init__(template=template, **kwargs)


class PretrainDataModule(PrealignDataModule):
    """Stage 2, captions: ``template`` is plain unless the YAML says otherwise."""


class FinetuneDataModule(EveDataModule):
    """Stage 3, conversations: ``template`` is the model's own unless the YAML says otherwise."""

    def __init__(self, template: str | dict[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(template=template, **kwargs)
