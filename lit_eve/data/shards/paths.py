"""The shards behind what a user writes for them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from glob import escape, glob, has_magic
from itertools import chain
from pathlib import Path

from braceexpand import UnbalancedBracesError, braceexpand

from lit_eve.errors import ConfigError
from lit_eve.files import local_path

_URL = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]+://")
_COMPRESSED = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|zstd|lz4|Z))$", re.IGNORECASE)
_ANNOTATIONS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def list_shards(path: str | os.PathLike[str]) -> list[Path]:
    """The tar files behind a path.

    Args:
        path: a folder (all of its ``*.tar``), one tar, or, where there is no such file, names with the wildcards of the shell
            (``shards/part-*.tar``), WebDataset's braces (``shard-{000000..000099}.tar``) and unions (``one::two``).

    Returns:
        absolute paths; those of a folder or of wildcards sorted, those of braces and unions in their order.

    Raises:
        ConfigError: there is none, one of them is missing, or a folder holds compressed ones.
    """
    text = local_path(path)
    if os.path.exists(text):  # whatever characters it has
        pieces: Iterator[str] = iter([text])
    else:
        pieces = chain.from_iterable(_expand(piece) for piece in text.split("::"))
    return [shard for piece in pieces for shard in _list_piece(piece)]


def _expand(text: str) -> Iterator[str]:
    folder, rest = _split(text)
    try:
        yield from (os.path.join(folder, name) for name in (braceexpand(rest) if "{" in rest else [rest]))
    except UnbalancedBracesError as error:
        raise ConfigError(f"{text}: {error}") from error


def _split(text: str) -> tuple[str, str]:
    """The folders at the beginning that are there, which stand for themselves whatever characters they have, and the rest."""
    folder = next(folder for folder in Path(text).parents if folder.is_dir())
    return (str(folder), str(Path(text).relative_to(folder))) if folder.name else ("", text)


def _list_piece(text: str) -> list[Path]:
    if _URL.match(text):
        raise ConfigError(f"{text} is no file of this machine; shards are read at random, so copy them to a disk first")
    path = Path(local_path(text))
    if path.is_dir():
        return _list_folder(path)
    if path.exists():
        return [path.absolute()]
    if path.is_symlink():
        raise ConfigError(f"{text} is a link to {os.readlink(path)}, which does not exist")
    folder, rest = _split(str(path))
    names = sorted(glob(os.path.join(escape(folder), rest)))
    found = [Path(name).absolute() for name in names if not os.path.basename(name).startswith(".")]
    if not found:
        raise ConfigError(
            f"{text} does not exist" if not has_magic(text) else f"{text} does not exist: no file has such a name"
        )
    return found


def _list_folder(folder: Path) -> list[Path]:
    names = _names_in(folder)
    shards = [name for name in names if name.lower().endswith(".tar")]
    packed = [name for name in names if (end := _COMPRESSED.search(name)) and f"{name[: end.start()]}.tar" not in shards]
    if packed:
        others = f" and {len(packed) - 1} more" if len(packed) > 1 else ""
        raise ConfigError(
            f"{folder} holds {packed[0]}{others}, compressed, and samples are read at their place in the file: unpack "
            "compressed shards first, or name the others by a pattern"
        )
    if not shards:
        raise ConfigError(f"{folder} holds no shards (*.tar){_hint(folder, names)}")
    return [(folder / name).absolute() for name in shards]


def _hint(folder: Path, names: list[str]) -> str:
    """What the folder holds instead."""
    for name in names:
        if Path(name).suffix.lower() in _ANNOTATIONS:
            return f"; annotations are named as a file, such as {folder / name}"
        if (folder / name).is_dir() and any(entry.lower().endswith(".tar") for entry in _names_in(folder / name)):
            return f", but its folder {name} does; name that one, or all of them by a pattern"
    return ""


def _names_in(folder: Path) -> list[str]:
    """The names in a folder, without those that file managers hide, such as ``._shard.tar`` of macOS."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read: {error}") from error
