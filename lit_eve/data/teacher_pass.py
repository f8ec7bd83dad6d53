"""One pass of the frozen teacher over the images of shards, for :mod:`lit_eve.data.features`.

Notation: i images of a sample, C side of the teacher's square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_eve.data.features import TeacherFeatures, images_of_samples, missing_features, write_features
from lit_eve.data.shards.index import ShardIndex, index_shard
from lit_eve.data.shards.reader import ShardReader
from lit_eve.errors import SampleError
from lit_eve.losses import FrozenTeacher
from lit_eve.processing import EveProcessor, TeacherGrid

_IMAGES = 32  # of a forward pass


class _Squares(Dataset):
    """What the teacher sees of the images of each sample: (i, 3, C, C) uint8 and whether they could be read."""

    def __init__(self, index: ShardIndex, processor: EveProcessor, grid: TeacherGrid) -> None:
        self.reader, self.offset, self.size = ShardReader([index.path]), index.offset, index.size
        self.images = images_of_samples(index)
        self.processor, self.grid = processor, grid

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, sample: int) -> tuple[Tensor, bool]:
        count, side = int(self.images[sample + 1] - self.images[sample]), self.grid.image_size
        try:
            squares = self.processor.teacher_squares(
                self.reader.read(0, int(self.offset[sample]), int(self.size[sample])), self.grid
            )
            return squares, True
        except SampleError:
            return torch.zeros(count, 3, side, side, dtype=torch.uint8), False


def make_features(
    paths: Sequence[Path],
    teacher: FrozenTeacher,
    wanted: TeacherFeatures,
    processor: EveProcessor,
    precision: str,
    workers: int = 0,
    progress: bool = False,
) -> tuple[int, int]:
    """Compute the features of all shards that have none yet; a shard that is done stays done.

    Args:
        paths: the shards.
        teacher: on the device that computes.
        wanted: hidden states, and what is written down about them.
        processor: makes the squares that it sees.
        precision: of the files.
        workers: processes that read images.
        progress: show a bar.

    Returns:
        images that were seen, samples whose images could not be read.

    Raises:
        ConfigError: a shard has other features already.
    """
    missing = list(missing_features(paths, wanted, precision))
    indices = [index_shard(path) for path in missing]
    total = sum(int(images_of_samples(index)[-1]) for index in indices)
    unusable = 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not progress or not total) as bar:
        task = bar.add_task("teacher sees images", total=total)
        for index in indices:
            usable: list[bool] = []
            squares = DataLoader(_Squares(index, processor, teacher.grid), batch_size=None, num_workers=workers)

            def pieces(squares: DataLoader = squares, usable: list[bool] = usable) -> Iterator[Tensor]:
                for batch in _batches(squares, usable):
                    states = teacher.states_of(batch.to(teacher.device), {*wanted.states})
                    yield torch.stack([states[state] for state in wanted.states], 1)  # (_IMAGES, S, P, K)
                    bar.advance(task, len(batch))

            write_features(index.path, wanted, precision, pieces(), usable)
            unusable += usable.count(False)
    return total, unusable


def _batches(squares: DataLoader, usable: list[bool]) -> Iterator[Tensor]:
    """Squares of samples, cut into batches."""
    waiting: list[Tensor] = []
    for one, could_be_read in squares:
        usable.append(bool(could_be_read))
        waiting.append(one)
        if sum(map(len, waiting)) >= _IMAGES:
            full = torch.cat(waiting)
            while len(full) >= _IMAGES:
                yield full[:_IMAGES]
                full = full[_IMAGES:]
            waiting = [full]
    if waiting and len(rest := torch.cat(waiting)):
        yield rest
