"""What all annotations have in common: records in blocks, each of which becomes a shard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Block:
    """A row of records that become one shard.

    Args:
        number: of the block and of its shard.
        first, count: its records; the count of a tar is not known before it was read (0).
        start, end: its bytes, counted over all files.
    """

    number: int
    first: int
    count: int
    start: int
    end: int


@dataclass(frozen=True)
class Entry:
    """A record as it was found.

    Args:
        place: where: ``{"record": 17}`` (counted from 0), ``{"line": 18}`` (from 1), ``{"row": 19}`` (as a spreadsheet
            counts), or ``{"shard": ..., "key": ...}``.
        record: what it says; empty if it cannot be read.
        images: contents of its image files; None where the record names or holds them.
        fault: why it cannot be read.
    """

    place: dict[str, Any]
    record: dict[str, Any]
    images: list[bytes] | None = None
    fault: str | None = None


Known = Callable[[int], Block | None]


class Annotations(Protocol):
    """Where records come from. Pickled into each worker process, so that only blocks have to travel."""

    path: Path
    size: int
    """Bytes of all files."""

    def identity(self) -> dict[str, Any]:
        """Changes whenever the records may."""
        ...

    def blocks(self, count: int, known: Known) -> Iterator[Block]:
        """The blocks, in order, of so many records each.

        Args:
            count: records of a block.
            known: a block that was cut before, by its number; it need not be read again.

        Raises:
            ConfigError: the file is damaged; all records before that are in the blocks that were given.
        """
        ...

    def entries(self, block: Block) -> Iterator[Entry]:
        """The records of a block."""
        ...
