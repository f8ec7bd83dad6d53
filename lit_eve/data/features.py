"""Features of a frozen teacher, computed once and kept beside the shards: a training with them needs no teacher in memory.

Beside ``x.tar`` lies ``x.teacher.safetensors``. Its metadata say which teacher saw which squares (:class:`TeacherFeatures`).

    features     (I, S, P, K)   of each image of the shard, in the order of the samples, S hidden states
    offset       (n,) int64     where each sample begins in the tar
    first_image  (n + 1,) int64 sample i has the images ``first_image[i]`` to ``first_image[i + 1]``
    usable       (n,) uint8     0: its images could not be read

Notation: n samples and I images of a shard, S hidden states of the teacher, P patches of its square, K its width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_eve.data.shards.index import ShardIndex, index_shard
from lit_eve.errors import ConfigError, SampleError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64", torch.uint8: "U8"}
_SUFFIX, _FACTS = ".teacher.safetensors", "lit_eve"


@dataclass(frozen=True)
class TeacherFeatures:
    """Which features a training needs, or a file holds.

    Args:
        facts: what decides their values: weights and config of the teacher, image size, normalisation, the student's geometry.
        states: numbers of the teacher's hidden states, increasing.
        patches: P.
        width: K.
    """

    facts: Mapping[str, Any]
    states: tuple[int, ...]
    patches: int
    width: int


def features_file(shard: Path) -> Path:
    """Where the features of a shard lie."""
    return shard.with_suffix(_SUFFIX)


def images_of_samples(index: ShardIndex) -> np.ndarray:
    """(n + 1,) int64: the images of sample i are those from i to i + 1 of all images of the shard."""
    counts = [len(index.image_sizes(sample)) for sample in range(len(index))]
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def samples_mark(index: ShardIndex) -> str:
    """Changes whenever the samples of a shard do."""
    digest = hashlib.sha256()
    for array in (index.keys, index.offset, index.size, index.image_wh):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# ---- writing


def write_features(
    shard: Path, wanted: TeacherFeatures, precision: str, features: Iterable[Tensor], usable: Sequence[bool]
) -> None:
    """Write the file of a shard; it appears as a whole or not at all, and no more than a piece of it is ever in memory.

    Args:
        precision: of ``PRECISIONS``.
        features: (i, S, P, K) pieces that together hold all images.
        usable: by sample; read after the last piece.
    """
    index = index_shard(shard)
    first = images_of_samples(index)
    dtype = PRECISIONS[precision]
    shapes = {
        "features": (dtype, (int(first[-1]), len(wanted.states), wanted.patches, wanted.width)),
        "offset": (torch.int64, (len(index),)),
        "first_image": (torch.int64, (len(first),)),
        "usable": (torch.uint8, (len(index),)),
    }
    facts = {"facts": wanted.facts, "states": wanted.states, "precision": precision, "samples": samples_mark(index)}
    target = features_file(shard)
    part = target.with_name(f".{target.name}.part")
    try:
        with part.open("wb") as file:
            file.write(_header(shapes, facts))
            for piece in features:
                file.write(piece.to("cpu", dtype).contiguous().view(torch.uint8).numpy())
            for array in (index.offset.astype(np.int64), first.astype(np.int64), np.array(usable, np.uint8)):
                file.write(array.tobytes())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _header(shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], facts: Mapping[str, Any]) -> bytes:
    """The beginning of a safetensors file whose tensors follow in this order."""
    entries: dict[str, Any] = {"__metadata__": {_FACTS: json.dumps(facts, sort_keys=True)}}
    end = 0
    for name, (dtype, shape) in shapes.items():
        start, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


# ---- reading


class FeatureFile:
    """The features of one shard.

    Args:
        is_checked: the samples of the shard were compared with those of the file before (:func:`check_features`).

    Raises:
        ConfigError: there are none, or of another teacher, hidden state, image size, geometry or shard.
    """

    def __init__(self, shard: Path, wanted: TeacherFeatures, is_checked: bool = False) -> None:
        self.path = features_file(shard)
        if not self.path.is_file():
            raise ConfigError(f"{shard} has no features of a teacher ({self.path.name}): make them with lit-eve pack --teacher")
        try:
            self._file = safe_open(self.path, "pt")
            written = json.loads(self._file.metadata()[_FACTS])
            self.precision: str = written["precision"]
            found, states = written["facts"], written["states"]
            offset, first, usable = (self._file.get_tensor(name).numpy() for name in ("offset", "first_image", "usable"))
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"{self.path} is damaged, or no file of features: {error}; remove it, make it again") from error
        for key in sorted(found.keys() | wanted.facts.keys()):
            there, here = (json.dumps(facts.get(key), sort_keys=True) for facts in (found, wanted.facts))
            if there != here:
                raise ConfigError(f"{self.path} was made for another {key}: {there}, and here it is {here}")
        if missing := [state for state in wanted.states if state not in states]:
            raise ConfigError(f"{self.path} holds the teacher's hidden states {states}, and {missing[0]} is needed")
        if not is_checked and written["samples"] != samples_mark(index_shard(shard)):
            raise ConfigError(f"{self.path} was made for other samples: {shard.name} has changed since; make it again")
        self._columns = [states.index(state) for state in wanted.states]
        self._offset, self._first, self._usable = offset, first, usable

    def read(self, offset: int, key: str) -> Tensor:
        """(i, S, P, K) of the sample that begins at ``offset``.

        Raises:
            SampleError: its images could not be read when the features were made.
        """
        sample = int(np.searchsorted(self._offset, offset))
        if not self._usable[sample]:
            raise SampleError(f"{key}: its images could not be read when the teacher's features were made")
        features = self._file.get_slice("features")[int(self._first[sample]) : int(self._first[sample + 1])]
        return features if len(self._columns) == features.shape[1] else features[:, self._columns]


class FeatureReader:
    """The features of many shards; a handful of files stay open.

    Args:
        paths: the shards, which :func:`check_features` has seen; samples are addressed by their place in this list.
        wanted: what is read.
    """

    def __init__(self, paths: Sequence[Path], wanted: TeacherFeatures, max_open: int = 32) -> None:
        self.paths, self.wanted, self.max_open = list(paths), wanted, max_open
        self._files: OrderedDict[int, FeatureFile] = OrderedDict()

    def read(self, shard: int, offset: int, key: str) -> Tensor:
        """(i, S, P, K) of a sample; see :class:`FeatureFile`."""
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            if len(self._files) >= self.max_open:
                self._files.popitem(last=False)
            self._files[shard] = FeatureFile(self.paths[shard], self.wanted, is_checked=True)
        return self._files[shard].read(offset, key)

    def __getstate__(self) -> dict[str, Any]:  # open files do not travel to worker processes
        return {**self.__dict__, "_files": OrderedDict()}


def check_features(paths: Iterable[Path], wanted: TeacherFeatures) -> torch.dtype:
    """The type that the features of all shards have.

    Raises:
        ConfigError: as :class:`FeatureFile`, or they differ in it.
    """
    found: dict[str, Path] = {}
    for path in paths:
        file = FeatureFile(path, wanted)
        found.setdefault(file.precision, file.path)
    if len(found) > 1:
        (first, one), (second, other) = list(found.items())[:2]
        raise ConfigError(f"{one} is of {first}, and {other} of {second}: make them in one precision")
    return PRECISIONS[next(iter(found))]


def missing_features(paths: Iterable[Path], wanted: TeacherFeatures, precision: str) -> Iterator[Path]:
    """The shards whose features are still to be made.

    Raises:
        ConfigError: a file is there that is of something else.
    """
    for path in paths:
        if not features_file(path).exists():
            with suppress(FileNotFoundError):  # of a process that was killed
                features_file(path).with_name(f".{features_file(path).name}.part").unlink()
            yield path
            continue
        file = FeatureFile(path, wanted)
        if file.precision != precision:
            raise ConfigError(f"{file.path} is of {file.precision}, not {precision}; remove it first")
