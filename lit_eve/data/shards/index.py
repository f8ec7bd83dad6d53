"""Where every sample of a shard lies and how large its images are: one pass over a tar's headers, no image decoded.

An index is made once and kept beside its shard (see cache.py); it is made again when the tar changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lit_eve.data.parallel import for_each_shard
from lit_eve.data.shards.cache import array_to_strings, is_kept, load_arrays, save_arrays, strings_to_array
from lit_eve.data.shards.tar import TEXT_EXTENSIONS, Group, groups_of, image_place
from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.images import image_size

_KINDS = {"other": 0, "json": 1, "txt": 2, "image": 3}


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one shard. n samples, m members (those of a sample in a row; its images in their order).

    Args:
        path: the tar.
        keys: (n,) UTF-8 bytes.
        offset, size: (n,) int64; the bytes of the tar that hold the sample, headers included.
        first_member: (n + 1,) int64; sample i has the members ``first_member[i]`` to ``first_member[i + 1]``.
        kind: (m,) uint8; 0 something else, 1 JSON, 2 caption, 3 image.
        data_offset, data_size: (m,) int64; the bytes of the tar that hold the member's contents.
        image_wh: (m, 2) int32 width and height of the upright image; 0 where it cannot be read, and for other members.
        faulty: (f,) int64; the samples that cannot be read, whatever their text is.
        faults: uint8, the JSON of a list of f texts; why.
    """

    path: Path
    keys: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    first_member: np.ndarray
    kind: np.ndarray
    data_offset: np.ndarray
    data_size: np.ndarray
    image_wh: np.ndarray
    faulty: np.ndarray
    faults: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        return self.keys[sample].decode()

    def reasons(self) -> dict[int, str]:
        """Why samples cannot be read, by their number."""
        return dict(zip(self.faulty.tolist(), array_to_strings(self.faults), strict=True))

    def texts(self) -> Iterator[dict[str, bytes]]:
        """The contents of each sample's text members, by extension."""
        names = {_KINDS[name]: name for name in TEXT_EXTENSIONS}
        with open(self.path, "rb") as file:
            for sample in range(len(self)):
                members = range(self.first_member[sample], self.first_member[sample + 1])
                yield {
                    names[self.kind[i]]: os.pread(file.fileno(), int(self.data_size[i]), int(self.data_offset[i]))
                    for i in members
                    if self.kind[i] in names
                }

    def image_sizes(self, sample: int) -> list[tuple[int, int]]:
        """(width, height) of each image of a sample; (0, 0) for one that cannot be read."""
        members = slice(self.first_member[sample], self.first_member[sample + 1])
        return [tuple(size) for size in self.image_wh[members][self.kind[members] == _KINDS["image"]].tolist()]


def scan_shard(path: Path) -> ShardIndex:
    """Index a tar from its headers.

    Raises:
        ConfigError: it is no tar, it is compressed or cut off, or the members of a sample are apart.
    """
    keys: list[bytes] = []
    offsets: list[int] = []
    ends: list[int] = []
    counts: list[int] = []
    faults: dict[int, str] = {}
    table: list[tuple[int, int, int, int, int]] = []  # kind, offset, size, width, height
    seen: set[str] = set()
    for group in groups_of(path):
        if group.key in seen:
            raise ConfigError(
                f"shard {path}: the members of sample {group.key!r} do not stand next to each other, or it is there twice; "
                "a tar made with --sort=name has them side by side"
            )
        if group.fault_in_place is not None:
            faults[len(keys)] = group.fault_in_place
        seen.add(group.key)
        keys.append(group.key.encode())
        offsets.append(group.members[0].info.offset)
        ends.append(max(member.end for member in group.members))
        counts.append(len(group.members))
        table += _rows(group)
    start = np.array(offsets, np.int64)
    rows = np.array(table, np.int64).reshape(-1, 5)
    return ShardIndex(
        path=path,
        keys=np.array(keys, dtype=np.bytes_) if keys else np.empty(0, "S1"),
        offset=start,
        size=np.array(ends, np.int64) - start,
        first_member=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        kind=rows[:, 0].astype(np.uint8),
        data_offset=rows[:, 1],
        data_size=rows[:, 2],
        image_wh=rows[:, 3:].astype(np.int32),
        faulty=np.array(list(faults), np.int64),
        faults=strings_to_array(list(faults.values())),
    )


def _rows(group: Group) -> list[tuple[int, int, int, int, int]]:
    """Kind, offset, size, width and height of the members of a sample, its images in their order at the end."""
    others, images = [], []
    for member in group.members:
        info, place = member.info, image_place(member.extension)
        if place is None:
            others.append((_KINDS.get(member.extension, 0), info.offset_data, info.size, 0, 0))
            continue
        width = height = 0
        with suppress(SampleError, OSError):  # listed with its reason when it is decoded or counted
            if not member.is_link:
                width, height = image_size(member.open(), member.name)
        images.append((place, member.extension, (_KINDS["image"], info.offset_data, info.size, width, height)))
    return others + [row for *_, row in sorted(images)]


def load_index(path: Path) -> ShardIndex | None:
    """The index that was made for this state of the tar, or None."""
    arrays = load_arrays(path, "index")
    return None if arrays is None else ShardIndex(path, **arrays)


def index_shard(path: Path) -> ShardIndex:
    """The index of a shard: the one that is kept, or a new one, which is kept from then on."""
    index = load_index(path)
    if index is None:
        index = scan_shard(path)
        arrays = {field.name: getattr(index, field.name) for field in fields(index) if field.name != "path"}
        save_arrays(path, "index", arrays)
    return index


def ensure_indices(paths: Sequence[Path], processes: int = 1, progress: bool = False) -> None:
    """Index all shards that are not indexed yet, so many at a time.

    Raises:
        ConfigError: a shard cannot be read; what is done stays done.
    """
    missing = [path for path in paths if not is_kept(path, "index")]
    for_each_shard(index_shard, missing, title="indexing shards", processes=processes, progress=progress)
