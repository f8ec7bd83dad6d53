"""Rows of samples become a batch (keys and shapes: :class:`Collate`).

Legend: B rows of T tokens, S samples and tail paddings, N images, P patches, p side of a patch, C side of the teacher's square.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lit_eve.data.features import FeatureReader
from lit_eve.data.lengths import Skipped
from lit_eve.data.shards import ShardReader
from lit_eve.data.shards.index import index_shard, load_index
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import SampleError
from lit_eve.losses import target_positions_of
from lit_eve.processing import EveProcessor, Sample, TeacherGrid
from lit_eve.processing.processor import TemplateName

IGNORE = -100
_PADDING = 64  # tokens of a piece of padding in a batch without samples
Encoded = dict[str, Any]


class PackedDataset(Dataset):
    """Reads and encodes rows of samples.

    It holds no index: an item is a row's references, (k, 5) shard, offset, size and length (``SampleTable.references``) and
    seed (``RowPlan.seeds``), so that worker processes stay small however many samples there are.

    Args:
        paths: the shards.
        processor: encodes a sample.
        template: how conversations are written.
        max_tokens: samples are cut after so many tokens.
        teacher: add the pixels of this teacher.
        features: add the features of a teacher that is not there.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        processor: EveProcessor,
        template: TemplateName | None,
        max_tokens: int,
        teacher: TeacherGrid | None,
        features: FeatureReader | None = None,
    ) -> None:
        self.reader = ShardReader(paths)
        self.processor = processor
        self.template = template
        self.max_tokens = max_tokens
        self.teacher = teacher
        self.features = features

    def __getitems__(self, rows: Sequence[np.ndarray]) -> list[list[Encoded | Skipped]]:
        return [self[row] for row in rows]

    def __getitem__(self, row: np.ndarray) -> list[Encoded | Skipped]:
        return [self._encode(*reference) for reference in row.tolist()]

    def _encode(self, shard: int, offset: int, size: int, length: int, seed: int) -> Encoded | Skipped:
        key = None
        try:
            sample = self.reader.read(shard, offset, size)
            key = sample.key
            encoded = self.processor.encode_sample(
                sample,
                template=self.template,
                with_labels=True,
                teacher=self.teacher,
                max_length=self.max_tokens,
            )
            if self.features is not None:
                encoded["teacher_features"] = self.features.read(shard, offset, key)
            found = len(encoded["input_ids"])
            if found > length:
                raise SampleError(f"{key}: it has {found} tokens, but {length} were counted; count again (delete .lit_eve)")
        except SampleError as error:
            path = self.reader.paths[shard]
            return Skipped(str(path), key or _key_at(path, offset), str(error))
        seeds = np.random.SeedSequence(seed).generate_state(len(encoded["image_grid_hw"]), np.uint64) >> np.uint64(1)
        image_seeds = torch.from_numpy(seeds.astype(np.int64))
        return {**encoded, "image_seeds": image_seeds, "key": key, "shard": str(self.reader.paths[shard])}


def _key_at(path: Path, offset: int) -> str:
    """The key of a sample that cannot be read any more."""
    index = load_index(path) if path.exists() else None
    return f"byte {offset}" if index is None else index.key(int(np.searchsorted(index.offset, offset)))


class StoredSamples(Dataset):
    """Samples as they are stored, conversation and images, for whoever makes prompts of them.

    Args:
        reader: reads the shards.
        references: (n, 3 or more) shard, offset, size (``SampleTable.references``).
    """

    def __init__(self, reader: ShardReader, references: np.ndarray) -> None:
        self.reader = reader
        self.references = references

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> Sample:
        if not index < len(self):
            raise IndexError(index)
        return self.reader.read(*self.references[index, :3].tolist())


def read_samples(path: str | Path, limit: int | None = None) -> StoredSamples:
    """The samples of shards, without a trainer: ``for sample in read_samples("runs/nano/data/test_questions", 20): ...``

    Args:
        path: a folder of shards, a single one, or whatever ``list_shards`` takes.
        limit: so many of them, spread evenly. None: all.

    Returns:
        A sequence. A sample that cannot be read raises SampleError when it is asked for, with the reason.

    Raises:
        ConfigError: there are no shards, or one of them is no tar.
    """
    paths = list_shards(path)
    indices = [index_shard(shard) for shard in paths]
    shard = np.repeat(np.arange(len(paths)), [len(index) for index in indices])
    offset, size = (np.concatenate([getattr(index, name) for index in indices]) for name in ("offset", "size"))
    place = np.stack([shard, offset, size], 1).astype(np.int64)
    return StoredSamples(ShardReader(paths), evenly(place, limit))


def evenly(rows: np.ndarray, count: int | None) -> np.ndarray:
    """So many of the rows, spread evenly from the first to the last; None: all."""
    if count is None or count >= len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


MODEL_INPUTS = (
    *("input_ids", "labels", "position_ids", "cu_seqlens", "max_seqlen", "target_positions", "image_positions"),
    *("pixel_values", "image_grid_hw", "image_seeds", "teacher_pixel_values", "teacher_features"),
)
"""What the model's forward takes of a batch; the rest is for the training loop."""


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Tensor | int]:
    """The entries of a batch that are keyword arguments of the model."""
    return {key: batch[key] for key in MODEL_INPUTS if key in batch}


@dataclass(frozen=True)
class Collate:
    """Rows of encoded samples to tensors; no loop over tokens.

        input_ids         (B, T) int64     samples one after the other, ``pad_token_id`` at the end of a row
        labels            (B, T) int64     -100 = not supervised; not shifted. The first token of a sample is never supervised:
                                           shifted labels would ask the sample before it to predict it
        position_ids      (B, T) int64     restart at 0 in every sample, and in the padding
        cu_seqlens        (S + 1,) int32   boundaries in the flattened B * T tokens; padding is cut into samples of its own,
                                           none longer than the longest sample, so that no decoder sees further positions
        max_seqlen        int              the longest of them; attention kernels must know it, and a GPU would have to be asked
        target_positions  (M,) int64       positions in the flattened tokens whose next token is supervised
        image_positions   (n,) int64       positions of the image slots in the flattened tokens, in order
        pixel_values      (P, 3 * p * p) uint8
        image_grid_hw     (N, 2) int64     rows and columns in patches, in the order of the images' slots
        image_seeds       (N,) int64       at least 0; for what is drawn for an image: a function of seed, epoch, sample and
                                           image, in validation of the last two
        teacher_pixel_values (N, 3, C, C) uint8, only with a teacher
        teacher_features  (N, S, P, K)     in their place, if a teacher's features are in the shards
        num_targets, num_images  () int64  supervised tokens and images of this batch
        num_padding       int              tokens of this batch that belong to no sample
        sample_ids        list of str      keys of the samples
        shards            list of str      shard of each sample
        skipped           list of Skipped  samples that could not be used; nothing stands in their place

    A batch without any usable sample has the same keys, with zero images and no labels.

    Args:
        max_tokens: T.
        pad_token_id: what fills up a row.
        patch_dim: 3 * p * p.
        image_token_id: what fills image slots.
        teacher_image_size: C, or None without a teacher.
        teacher_features: type and (S, P, K) of the features of a teacher that is not there.
    """

    max_tokens: int
    pad_token_id: int
    patch_dim: int
    image_token_id: int
    teacher_image_size: int | None = None
    teacher_features: tuple[torch.dtype, tuple[int, int, int]] | None = None

    def __call__(self, rows: Sequence[Sequence[Encoded | Skipped]]) -> dict[str, Any]:
        size = self.max_tokens
        kept = [[sample for sample in row if not isinstance(sample, Skipped)] for row in rows]
        samples = [sample for row in kept for sample in row]
        input_ids = torch.full((len(rows), size), self.pad_token_id)  # (B, T)
        labels = torch.full((len(rows), size), IGNORE)  # (B, T)
        longest = max((len(sample["input_ids"]) for sample in samples), default=_PADDING)
        boundaries = [0]
        for number, row in enumerate(kept):
            end = 0
            for sample in row:
                start, end = end, end + len(sample["input_ids"])
                input_ids[number, start:end] = sample["input_ids"]
                labels[number, start:end] = sample["labels"]
                labels[number, start] = IGNORE
                boundaries.append(number * size + end)
            boundaries += [number * size + place for place in (*range(end + longest, size, longest), size) if end < size]
        cu_seqlens = torch.tensor(boundaries)  # (S + 1,)
        lengths = cu_seqlens.diff()  # (S,)
        restarts = cu_seqlens[:-1].repeat_interleave(lengths)  # (B * T,) where the token's sample begins
        batch = {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": (torch.arange(len(rows) * size) - restarts).view(len(rows), size),
            "cu_seqlens": cu_seqlens.int(),
            "max_seqlen": int(lengths.max()),
            "target_positions": target_positions_of(labels),
            "image_positions": (input_ids.flatten() == self.image_token_id).nonzero().flatten(),
            "pixel_values": _cat(samples, "pixel_values", torch.uint8, self.patch_dim),
            "image_grid_hw": _cat(samples, "image_grid_hw", torch.int64, 2),
            "image_seeds": _cat(samples, "image_seeds", torch.int64),
        }
        if self.teacher_image_size is not None:
            side = self.teacher_image_size
            batch["teacher_pixel_values"] = _cat(samples, "teacher_pixel_values", torch.uint8, 3, side, side)
        if self.teacher_features is not None:
            dtype, shape = self.teacher_features
            batch["teacher_features"] = _cat(samples, "teacher_features", dtype, *shape)
        return {
            **batch,
            "num_targets": torch.tensor(len(batch["target_positions"])),
            "num_images": torch.tensor(len(batch["image_grid_hw"])),
            "num_padding": input_ids.numel() - sum(len(sample["input_ids"]) for sample in samples),
            "sample_ids": [sample["key"] for sample in samples],
            "shards": [sample["shard"] for sample in samples],
            "skipped": [sample for row in rows for sample in row if isinstance(sample, Skipped)],
        }


def _cat(samples: Sequence[Encoded], name: str, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.cat([torch.empty(0, *shape, dtype=dtype), *(sample[name] for sample in samples)])
