"""JSON files that are larger than memory, element by element: an array (LLaVA's files) or one object per line (JSONL).

Both readers can begin behind any element, so that another process, or a later run, goes on there.
"""

from __future__ import annotations

import codecs
import json
from json.decoder import WHITESPACE
from pathlib import Path
from types import TracebackType
from typing import Any

from lit_eve.errors import ConfigError

MAX_ELEMENT = 64 << 20  # bytes; what is longer is not closed: a quote or a bracket is missing
_CHUNK = 1 << 20
_DECODER = json.JSONDecoder()


class Reader:
    """Iterates over the elements of a file.

    Args:
        path: the file.
        start: the byte behind an element, as ``offset`` gave it, or 0.
        number: how many elements stand before that place.

    Attributes:
        offset: the byte behind the last element that was read.
        number: how many elements stand before that place.
    """

    def __init__(self, path: Path, start: int = 0, number: int = 0) -> None:
        self.path = path
        self.offset = start
        self.number = number
        self._file = open(path, "rb")  # noqa: SIM115 - closed by __exit__
        self._file.seek(start)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Reader:
        return self

    def __next__(self) -> Any:
        raise NotImplementedError


class LineReader(Reader):
    """The lines of a file as bytes.

    Raises:
        ConfigError: a line does not end.
    """

    def __next__(self) -> bytes:
        line = self._file.readline(MAX_ELEMENT + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_ELEMENT:
            raise ConfigError(f"{self.path}: line {self.number + 1} is longer than {MAX_ELEMENT >> 20} MiB; is it JSONL?")
        self.offset += len(line)
        self.number += 1
        return line


class ArrayReader(Reader):
    """The elements of a JSON array. Little more than one of them is in memory.

    Raises:
        ConfigError: no array, cut off, or no JSON; the message names the byte. All elements before it were given.
    """

    def __init__(self, path: Path, start: int = 0, number: int = 0) -> None:
        super().__init__(path, start, number)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""  # the part of the file that is in memory
        self._origin = 0  # where the byte ``offset`` is in it
        self._place = 0  # what is read next
        self._fault: str | None = None  # why nothing behind the text can be decoded
        self._begins, self._ended = start == 0, False

    def __next__(self) -> Any:
        if self._ended:  # asked again
            raise StopIteration
        begins, self._begins = self._begins, False
        if begins:
            self._open()
        if self._peek() == "]":
            self._close()
            raise StopIteration
        if not begins:
            if self._peek() != ",":
                raise self._broken("a comma or the closing ] is missing")
            self._place += 1
        self._peek()
        value = self._element()
        self.offset = self._byte()
        self._origin = self._place
        self.number += 1
        return value

    def _open(self) -> None:
        if self._peek() == "\ufeff":  # a byte order mark
            self._place += 1
        if self._peek() != "[":
            hint = "" if self.path.suffix.lower() == ".json" else "; a table is named .csv or .tsv"
            raise self._broken(f"a list of records [...] should begin here{hint}")
        self._place += 1

    def _close(self) -> None:
        """Nothing follows the array; a second array would be lost."""
        self._place += 1
        if self._peek():
            raise self._broken("something follows the end of the list")
        self._ended = True

    def _element(self) -> Any:
        while True:
            problem: Exception | None = None
            try:
                value, end = _DECODER.raw_decode(self._text, self._place)
            except (ValueError, RecursionError) as error:
                problem = error
            if problem is None and self._text[end : end + 1] not in ("", ".", "e", "E"):  # there, a number may go on
                break
            if len(self._text) - self._place > MAX_ELEMENT:
                raise self._broken(f"this record does not end within {MAX_ELEMENT >> 20} MiB")
            if not self._more():
                if problem is None:
                    break
                raise self._broken(f"this record cannot be read: {problem}")
        self._place = end
        return value

    def _peek(self) -> str:
        """The next character that is no whitespace; empty at the end of the file."""
        while True:
            self._place = WHITESPACE.match(self._text, self._place).end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read on; False at the end of the file. What was read before ``offset`` is forgotten."""
        if self._fault is not None:
            raise self._broken(self._fault)
        data = self._file.read(max(_CHUNK, len(self._text) - self._origin))  # twice as much each time, for long records
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            text = error.object[: error.start].decode()
            self._fault = f"byte {self._file.tell() - len(error.object) + error.start} is no UTF-8"
        self._text = self._text[self._origin :] + text
        self._place -= self._origin
        self._origin = 0
        return bool(data)

    def _byte(self) -> int:
        """Which byte of the file is read next."""
        return self.offset + len(self._text[self._origin : self._place].encode())

    def _broken(self, problem: str) -> ConfigError:
        ends = " (the file ends here: is it cut off?)" if self._place >= len(self._text) else ""
        return ConfigError(f"{self.path}, byte {self._byte()}, after {self.number} records: {problem}{ends}")
