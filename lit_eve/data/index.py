"""Where every sample of a shard lies and how large its images are: one pass over a tar's headers, no image decoded.

An index is made once and kept beside its shard (see cache.py); it is made again when the tar changes.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lit_eve.data.cache import is_kept, load_arrays, save_arrays
from lit_eve.data.parallel import for_each_shard
from lit_eve.data.shards import TEXT_EXTENSIONS, image_place, is_whole, split_name
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

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, sample: int) -> str:
        return self.keys[sample].decode()

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
        ConfigError: it is no tar, it is cut off, or the members of a sample are apart.
    """
    keys: list[bytes] = []
    offsets: list[int] = []
    ends: list[int] = []
    counts: list[int] = []
    members: list[tuple[int, int, int, int, int]] = []  # kind, offset, size, width, height
    images: list[tuple[int, tuple[int, int, int, int, int]]] = []  # place, member
    seen: set[str] = set()
    current = None
    try:
        with tarfile.open(path, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                key, extension = split_name(member.name)
                if key != current:
                    if key in seen:
                        raise ConfigError(f"shard {path}: the members of sample {key!r} do not stand next to each other")
                    members += [image for _, image in sorted(images)]
                    images = []
                    seen.add(key)
                    keys.append(key.encode())
                    offsets.append(member.offset)
                    ends.append(0)
                    counts.append(0)
                    current = key
                ends[-1] = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                counts[-1] += 1
                place = image_place(extension)
                if place is None:
                    members.append((_KINDS.get(extension, 0), member.offset_data, member.size, 0, 0))
                else:
                    try:
                        width, height = image_size(tar.extractfile(member), member.name)
                    except SampleError:  # listed with its reason when it is decoded or counted
                        width = height = 0
                    images.append((place, (_KINDS["image"], member.offset_data, member.size, width, height)))
            end = tar.offset
    except (OSError, tarfile.TarError) as error:
        raise ConfigError(f"shard {path} cannot be read: {error}") from error
    members += [image for _, image in sorted(images)]
    if not is_whole(path, end):
        raise ConfigError(f"shard {path} is cut off or damaged after {len(keys)} samples")
    table = np.array(members, np.int64).reshape(-1, 5)
    start = np.array(offsets, np.int64)
    return ShardIndex(
        path=path,
        keys=np.array(keys, dtype=np.bytes_) if keys else np.empty(0, "S1"),
        offset=start,
        size=np.array(ends, np.int64) - start,
        first_member=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]),
        kind=table[:, 0].astype(np.uint8),
        data_offset=table[:, 1],
        data_size=table[:, 2],
        image_wh=table[:, 3:].astype(np.int32),
    )


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
