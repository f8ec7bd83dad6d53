"""Shards that others made, to be packed again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_eve.data.annotations.base import Block, Entry, Known
from lit_eve.data.shards import parse_sample
from lit_eve.data.shards.tar import DamagedTar, Group, groups_of
from lit_eve.errors import ConfigError, SampleError


class ShardedAnnotations:
    """Tars of samples: one block each.

    Args:
        path: what named them.
        shards: the tars.

    Raises:
        ConfigError: one of them cannot be read.
    """

    def __init__(self, path: Path, shards: list[Path]) -> None:
        self.path = path
        self.shards = shards
        self.size = sum(status.st_size for status in map(_status, shards))

    def identity(self) -> dict[str, Any]:
        states = [(shard.name, status.st_size, status.st_mtime_ns) for shard in self.shards for status in [_status(shard)]]
        return {
            "annotations": str(self.path.absolute()),
            "number of annotated shards": len(states),
            "annotated shards' sizes and times of change": hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16],
        }

    def blocks(self, count: int, known: Known) -> Iterator[Block]:
        start = 0
        for number, shard in enumerate(self.shards):
            end = start + _status(shard).st_size
            yield known(number) or Block(number, 0, 0, start, end)
            start = end

    def entries(self, block: Block) -> Iterator[Entry]:
        path = self.shards[block.number]
        seen: set[str] = set()
        try:
            for group in groups_of(path):
                yield _entry(path, group, again=group.key in seen)
                seen.add(group.key)
        except DamagedTar as error:
            yield Entry({"shard": path.name, "key": error.key}, {"id": error.key}, fault=str(error))


def _entry(path: Path, group: Group, again: bool) -> Entry:
    place = {"shard": path.name, "key": group.key}
    try:
        if group.fault is not None:
            raise SampleError(f"{group.key}: {group.fault}")
        sample = parse_sample(group.key, {member.extension: member.read() for member in group.members})
    except (SampleError, OSError) as error:
        apart = "; other members of this name do not stand next to these (tar --sort=name puts them there)" if again else ""
        return Entry(place, {"id": group.key}, fault=f"{error}{apart}")
    return Entry(place, {"id": group.key, **sample.metadata, "conversations": sample.conversation}, list(sample.images))


def _status(shard: Path) -> os.stat_result:
    try:
        return shard.stat()
    except OSError as error:
        raise ConfigError(f"shard {shard} cannot be read: {error}") from error
