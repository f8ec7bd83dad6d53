"""Files of records: JSON arrays, JSONL, tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any

from lit_eve.data.annotations.base import Block, Entry, Known
from lit_eve.data.annotations.json_stream import LineReader, Reader
from lit_eve.data.annotations.tables import FIRST_ROW, TableReader
from lit_eve.errors import ConfigError, SampleError


class AnnotationFile:
    """A file of records: a JSON array, JSONL, or a table.

    Args:
        path: the file.
        reader: what its elements are read with.
        json_path: where the files lie that its elements name.
    """

    def __init__(self, path: Path, reader: type[Reader], json_path: Path | None = None) -> None:
        self.path = path
        self.reader = reader
        self.json_path = json_path
        self.size = path.stat().st_size

    def identity(self) -> dict[str, Any]:
        status = self.path.stat()
        return {
            "annotations": str(self.path),
            "annotations' bytes": status.st_size,
            "annotations' time of change": status.st_mtime_ns,
            "json_path": self.json_path and str(self.json_path),
        }

    def blocks(self, count: int, known: Known) -> Iterator[Block]:
        start = first = 0
        reader = self.reader(self.path)
        try:
            for number in count_from():
                block, fault = known(number), None
                if block is None:
                    if reader.offset != start:
                        reader.close()
                        reader = self.reader(self.path, start, first)
                    try:
                        for _ in islice(reader, count):
                            pass
                    except ConfigError as error:
                        fault = error
                    block = Block(number, first, reader.number - first, start, reader.offset)
                if block.count:
                    yield block
                if fault is not None:
                    raise fault
                if not block.count:
                    return
                start, first = block.end, block.first + block.count
        finally:
            reader.close()

    def entries(self, block: Block) -> Iterator[Entry]:
        with self.reader(self.path, block.start, block.first) as reader:
            for number, element in enumerate(islice(reader, block.count), block.first):
                if isinstance(reader, LineReader):
                    place = {"line": number + 1}
                    if not element.strip():
                        continue
                    try:
                        element = json.loads(element.decode("utf-8-sig"))
                    except (ValueError, RecursionError) as error:
                        yield Entry(place, {}, fault=f"the line is no JSON: {error}")
                        continue
                elif isinstance(reader, TableReader):
                    place = {"row": number + FIRST_ROW}
                    if element == {}:
                        continue
                    if isinstance(element, SampleError):
                        yield Entry(place, {}, fault=str(element))
                        continue
                else:
                    place = {"record": number}
                yield self._entry(place, element)

    def _entry(self, place: dict[str, Any], element: Any) -> Entry:
        if isinstance(element, str) and self.json_path is not None:
            file = self.json_path / f"{element}.json"
            try:
                element = json.loads(file.read_bytes())
            except (OSError, ValueError, RecursionError) as error:
                return Entry(place, {"id": file.stem}, fault=f"{file} cannot be read: {error}")
        if isinstance(element, dict):
            return Entry(place, element)
        hint = "; a folder of JSON files by name is given as --json-path" if isinstance(element, str) else ""
        return Entry(place, {}, fault=f"the record is no object, but {type(element).__name__}{hint}")
