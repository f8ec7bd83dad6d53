"""Annotations as they are published, brought into the form of a shard's record, block by block.

    [{"id": ..., "image": "coco/train2017/1.jpg", "conversations": [{"from": "human", "value": "<image>\n..."}, ...]}, ...]

A file is a JSON array (LLaVA's and EVE's) or JSONL. A record is LLaVA's, as above (without "image": text only), a caption
(``{"image": ..., "caption": ...}``), or ``{"messages": [{"role": ..., "content": ...}, ...], "images": [...]}`` as trainers of
the Hugging Face ecosystem read it. EVE's captions for stages 1 and 2 are LLaVA's records too, of one question and one answer.
In EVE's split form the array holds names, each of a JSON file in another folder (``data_is_index`` in
EVEv1/eve/train/train.py). Shards, such as those of img2dataset, are read as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count as count_from
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Protocol

from lit_eve.data.json_stream import MAX_ELEMENT, ArrayReader, LineReader, Reader
from lit_eve.data.shards import caption_conversation, is_whole, list_shards, parse_sample, split_name
from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.inputs import images_of

_LINES = {".jsonl", ".ndjson"}


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
        place: where: ``{"record": 17}`` (counted from 0), ``{"line": 18}`` (from 1), or ``{"shard": ..., "key": ...}``.
        record: what it says; empty if it cannot be read.
        images: contents of its image files; None where the record names them.
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


def open_annotations(path: str | os.PathLike[str], json_path: str | os.PathLike[str] | None = None) -> Annotations:
    """The annotations in a file, or in the shards of a folder or pattern.

    Args:
        path: a JSON array, JSONL, a folder of tars, a pattern of tars, or one tar.
        json_path: the folder of the JSON files, where the array holds their names.

    Raises:
        ConfigError: there is nothing, or it is none of these.
    """
    path = Path(path)
    if path.is_dir() or path.suffix == ".tar":
        return ShardedAnnotations(path, list_shards(path))
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    if json_path is not None and not Path(json_path).is_dir():
        raise ConfigError(f"{json_path} is no folder")
    try:
        reader = LineReader if path.suffix in _LINES or _has_lines(path) else ArrayReader
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return AnnotationFile(path.absolute(), reader, json_path and Path(json_path).absolute())


def _has_lines(path: Path) -> bool:
    """Whether a file that is not called so is JSONL: its first line is an object of its own."""
    with open(path, "rb") as file:
        line = file.readline(MAX_ELEMENT).removeprefix(b"\xef\xbb\xbf").strip()
        if line.startswith(b"{"):
            try:
                json.loads(line)
                return True
            except ValueError:
                raise ConfigError(f"{path} is one JSON object; it should be a list of records, or have one per line") from None
    return False


class AnnotationFile:
    """A file of records: a JSON array or JSONL.

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


class ShardedAnnotations:
    """Shards that others made: one block each.

    Args:
        path: the folder or pattern.
        shards: its tars.
    """

    def __init__(self, path: Path, shards: list[Path]) -> None:
        self.path = path
        self.shards = shards
        self.size = sum(shard.stat().st_size for shard in shards)

    def identity(self) -> dict[str, Any]:
        states = [(shard.name, status.st_size, status.st_mtime_ns) for shard in self.shards for status in [shard.stat()]]
        return {
            "annotations": str(self.path.absolute()),
            "number of annotated shards": len(states),
            "annotated shards' sizes and times of change": hashlib.sha256(json.dumps(states).encode()).hexdigest()[:16],
        }

    def blocks(self, count: int, known: Known) -> Iterator[Block]:
        start = 0
        for number, shard in enumerate(self.shards):
            end = start + shard.stat().st_size
            yield known(number) or Block(number, 0, 0, start, end)
            start = end

    def entries(self, block: Block) -> Iterator[Entry]:
        path = self.shards[block.number]
        for key, members, fault in _samples(path):
            place = {"shard": path.name, "key": key}
            try:
                if fault is not None:
                    raise SampleError(fault)
                sample = parse_sample(key, members)
            except SampleError as error:
                yield Entry(place, {"id": key}, fault=str(error))
                continue
            yield Entry(place, {"id": key, **sample.metadata, "conversations": sample.conversation}, list(sample.images))


def _samples(path: Path) -> Iterator[tuple[str, dict[str, bytes], str | None]]:
    """Key, members and fault of the samples of a tar; the last one is at fault where the tar is cut off."""
    last: tuple[str, dict[str, bytes], str | None] | None = None
    fault = "the shard is cut off or damaged here"
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in groupby(filter(tarfile.TarInfo.isfile, tar), key=lambda member: split_name(member.name)[0]):
                if last is not None:
                    yield last
                last = key, {}, None
                for member in members:
                    last[1][split_name(member.name)[1]] = tar.extractfile(member).read()
        if is_whole(path, tar.offset):
            fault = None
    except (OSError, tarfile.TarError) as error:
        fault += f": {error}"
    if last is not None or fault is not None:
        key, members, _ = last or ("", {}, None)
        yield key, members, fault


def shard_record(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A record as shards hold it, and the names of its images.

    Returns:
        the record with its conversation under ``conversations``, the rest as it was; and what its key ``image`` or ``images``
        names, or else what the image parts of its messages do.

    Raises:
        SampleError: no conversation or caption, or names that are no text.
    """
    conversation = record.get("conversations") or record.get("messages")
    if conversation is None:
        if not isinstance(record.get("caption"), str):
            raise SampleError("there is no conversation (key 'conversations' or 'messages') and no caption (key 'caption')")
        conversation = caption_conversation(record["caption"])
    names = record.get("image") or record.get("images")
    if not names:
        try:
            names = images_of(conversation)
        except (SampleError, AttributeError, TypeError):  # parts without a name, or no messages: judged by its reader
            names = []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SampleError("the key 'image' or 'images' should be the name of a file or a list of names")
    kept = {key: value for key, value in record.items() if key != "messages" and (key != "image" or value)}
    return {**kept, "conversations": conversation}, names
