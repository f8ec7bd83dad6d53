"""Tables of captions, CSV or TSV, row by row.

The first line names the columns; which of them holds the images and which the captions is found by their names. What separates
the cells is what makes such names of the first line: a comma, a tab, a semicolon or a bar.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_eve.data.annotations.json_stream import MAX_ELEMENT, Reader
from lit_eve.data.shards.records import CAPTION_KEYS, FILE_KEYS, IMAGE_KEYS, plain_key
from lit_eve.errors import ConfigError, SampleError

SEPARATORS = ",\t;|"
FIRST_ROW = 2
"""The number of the first row behind the names of the columns, as a spreadsheet counts."""

_WORDS = {"new-line character": "a carriage return stands outside of quotes"}


class TableReader(Reader):
    """The rows of a table: records, ``{}`` for an empty row, or the SampleError that says why a row is none.

    Raises:
        ConfigError: no column for images or captions, or a quote that is not closed; the rows before it were given.
    """

    def __init__(self, path: Path, start: int = 0, number: int = 0) -> None:
        super().__init__(path, 0, number)
        csv.field_size_limit(MAX_ELEMENT)
        header = self._file.readline(MAX_ELEMENT)
        self.separator, self.names = _columns(path, header)
        self.offset = max(start, len(header))
        self._file.seek(self.offset)

    def __next__(self) -> dict[str, Any] | SampleError:
        lines: list[bytes] = []
        row: list[str] | None = None
        problem: csv.Error | None = None
        try:
            row = next(csv.reader(self._lines(lines), delimiter=self.separator, strict=True), None)
        except csv.Error as error:
            problem = error
        if not lines:
            raise StopIteration
        fault = f"the row cannot be read: {_WORDS.get(str(problem).split(' seen')[0], problem)}"
        if self._is_whole(lines) and problem is not None:
            lines, row = lines[:1], _text(lines[0]).rstrip("\r\n").split(self.separator)
        elif self._is_whole(lines) and len(lines) > 1:
            row, fault = (
                None,
                f"by its quotes this is one row, by its tabs {len(lines)}; take the quotes out, or write it as CSV",
            )
        elif problem is not None and len(lines) > 1:
            raise ConfigError(
                f"{self.path}, row {self.number + FIRST_ROW}, byte {self.offset}: a quote that opens in this row is not closed "
                f"as it should be: {problem}"
            ) from problem
        self.offset += sum(map(len, lines))
        self._file.seek(self.offset)
        self.number += 1
        return SampleError(fault) if row is None else self._record(row)

    def _lines(self, seen: list[bytes]) -> Iterator[str]:
        """The lines of one row: more than one where a line ends inside of quotes."""
        while line := self._file.readline(MAX_ELEMENT + 1):
            seen.append(line)
            if sum(map(len, seen)) > MAX_ELEMENT:
                raise csv.Error(f"the row does not end within {MAX_ELEMENT >> 20} MiB")
            yield _text(line)

    def _is_whole(self, lines: list[bytes]) -> bool:
        """Whether each line is a row of its own where quotes are but characters, as in many tables with tabs."""
        return self.separator == "\t" and {line.count(b"\t") + 1 for line in lines} == {len(self.names)}

    def _record(self, row: list[str]) -> dict[str, Any] | SampleError:
        if not any(cell.strip() for cell in row):
            return {}
        if len(row) != len(self.names):
            hint = "; is one of its commas not in quotes?" if len(row) > len(self.names) and self.separator == "," else ""
            return SampleError(f"the row has {len(row)} cells, but the first line names {len(self.names)} columns{hint}")
        try:
            "".join(row).encode()
        except UnicodeEncodeError:
            return SampleError("the row is no UTF-8; save the table as UTF-8")
        return {name: cell for name, cell in zip(self.names, row, strict=True) if name}


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _columns(path: Path, header: bytes) -> tuple[str, list[str]]:
    """What separates the cells, and the names of the columns."""
    try:
        line = header.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: its first line is no UTF-8; save the table as UTF-8") from error
    splits: dict[str, list[str]] = {}
    for separator in SEPARATORS:
        try:
            names = next(csv.reader([line.rstrip("\r\n")], delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        splits[separator] = [name.strip() for name in names]
    for separator, names in splits.items():
        plain = [plain_key(name) for name in names]
        if not set(plain).isdisjoint(IMAGE_KEYS + FILE_KEYS) and not set(plain).isdisjoint(CAPTION_KEYS):
            if len(set(filter(None, names))) < len(list(filter(None, names))):
                raise ConfigError(f"{path}: its first line names a column twice: {', '.join(names)}")
            return separator, names
    names = max(splits.values(), key=len, default=[line.strip()])
    raise ConfigError(
        f"{path}: its first line should name a column of images (image, file_name, filepath, ...) and one of captions "
        f"({', '.join(CAPTION_KEYS[:3])}, ...), but it names: {', '.join(name[:40] for name in names[:8])}"
    )
