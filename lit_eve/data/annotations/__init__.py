"""Annotations as they are published, brought into the form of a shard's record, block by block.

    [{"id": ..., "image": "coco/train2017/1.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}, ...]

A file is a JSON array (LLaVA's and EVE's), JSONL, or a table with a column of images and one of captions. A record is LLaVA's,
as above (without "image": text only), a caption (``{"image": ..., "caption": ...}``), or ``{"messages": [{"role": ...,
"content": ...}, ...], "images": [...]}`` as trainers of the Hugging Face ecosystem read it. EVE's captions for stages 1 and 2
are LLaVA's records too, of one question and one answer. In EVE's split form the array holds names, each of a JSON file in
another folder (``data_is_index`` in EVEv1/eve/train/train.py). Shards, such as those of img2dataset, are read as well.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lit_eve.data.annotations.base import Annotations, Block, Entry
from lit_eve.data.annotations.files import AnnotationFile
from lit_eve.data.annotations.json_stream import MAX_ELEMENT, ArrayReader, LineReader, Reader
from lit_eve.data.annotations.records import image_labels, read_image, shard_record
from lit_eve.data.annotations.shards import ShardedAnnotations
from lit_eve.data.annotations.tables import TableReader
from lit_eve.data.shards.foreign import foreign_kind
from lit_eve.data.shards.paths import list_shards
from lit_eve.data.shards.records import CAPTION_KEYS, CONVERSATION_KEYS
from lit_eve.errors import ConfigError
from lit_eve.files import local_path

__all__ = [
    "AnnotationFile",
    "Annotations",
    "Block",
    "Entry",
    "ShardedAnnotations",
    "image_labels",
    "open_annotations",
    "read_image",
    "shard_record",
]

_TABLES = {".csv", ".tsv"}
_LINES = {".jsonl", ".ndjson"}


def open_annotations(path: str | os.PathLike[str], json_path: str | os.PathLike[str] | None = None) -> Annotations:
    """The annotations in a file, or in the shards of a folder or pattern.

    Args:
        path: a JSON array, JSONL, a table (``.csv``, ``.tsv``), or shards (``list_shards``).
        json_path: the folder of the JSON files, where the array holds their names.

    Raises:
        ConfigError: there is nothing, or it is none of these.
    """
    file = Path(local_path(path))
    if json_path is not None:
        json_path = Path(local_path(json_path)).absolute()
        if not json_path.is_dir():
            raise ConfigError(f"{json_path} is no folder")
    try:
        if not file.is_file() or _is_tar(file):
            return ShardedAnnotations(file, list_shards(path))
        if (kind := foreign_kind(file)) is not None:
            raise ConfigError(f"{file} {kind}")
        return AnnotationFile(file.absolute(), _reader_of(file), json_path)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _is_tar(path: Path) -> bool:
    with open(path, "rb") as file:
        return path.suffix.lower() == ".tar" or file.read(262)[257:] == b"ustar"


def _reader_of(path: Path) -> type[Reader]:
    """What reads a file: tables by their names, JSON by what it begins with."""
    if path.suffix.lower() in _TABLES:
        TableReader(path).close()  # says which columns are missing
        return TableReader
    with open(path, "rb") as file:
        line = file.readline(MAX_ELEMENT).removeprefix(b"\xef\xbb\xbf").strip()
        if not line.startswith(b"{"):
            return LineReader if path.suffix.lower() in _LINES and not line.startswith(b"[") else ArrayReader
        try:
            first = json.loads(line)
        except (ValueError, RecursionError):
            if path.suffix.lower() in _LINES:  # its line is listed
                return LineReader
            raise ConfigError(f"{path} is one JSON object; it should be a list of records, or have one per line") from None
        if not file.read(_MORE).strip() and (keys := _lists_in(first)):
            raise ConfigError(
                f"{path} is one JSON object with lists in it ({', '.join(keys[:8])}); it should be a list of records, or have "
                "one per line: save the list that has the records as a file of its own"
            )
    return LineReader


_MORE = 1 << 16  # bytes in which a second line would begin


def _lists_in(record: dict[str, Any]) -> list[str]:
    """Keys of an object that is no record itself, under which its records may be."""
    if any(record.get(key) for key in CONVERSATION_KEYS + CAPTION_KEYS):
        return []
    return [key for key, value in record.items() if isinstance(value, list | dict)]
