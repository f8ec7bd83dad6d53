"""Reading official files so that what is wrong in them is told with its place."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Collection, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lit_eve.errors import ConfigError

SHOWN = 5
JSON_TYPES = {str: "text", int: "whole number", bool: "truth value", list: "list", dict: "object"}


class Problems:
    """What is wrong with files, in their order: ``lines``; and ``groups`` of questions that lack one for it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.groups: set[Hashable] = set()

    def note(self, place: str, text: str, group: Hashable = None) -> None:
        """Note something that is wrong at a place ("coco_pope_random.json, line 12"), with a question of a group."""
        self.lines.append(f"{place}: {text}")
        if group is not None:
            self.groups.add(group)

    def __len__(self) -> int:
        return len(self.lines)

    def __str__(self) -> str:
        rest = len(self.lines) - SHOWN
        return "; ".join(self.lines[:SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def read_json(path: Path, kind: type[dict] | type[list]) -> Any:
    """The object or list that a JSON file holds.

    Raises:
        ConfigError: it is no JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no JSON: {error}; download it again") from error
    if not isinstance(content, kind):
        raise ConfigError(f"{path} is not the official file: it holds no JSON {JSON_TYPES[kind]}")
    return content


def read_entries(
    path: Path, keys: Collection[str] | Mapping[str, type], problems: Problems, name: str | None = None
) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The objects of a list in a JSON file, each with its number, from 0, and its place in words.

    Args:
        path: the file.
        keys: see :func:`checked`.
        problems: notes entries that are no object, lack a key or have a wrong type; they are left out.
        name: the key of the list; None: the file holds nothing else.

    Raises:
        ConfigError: the file is no JSON, or has no such list.
    """
    rows = read_json(path, dict if name else list)
    if name:
        rows = rows.get(name)
        if not isinstance(rows, list):
            raise ConfigError(f"{path} is not the official file: it has no list {name!r}")
    for number, row in enumerate(rows):
        place = f"{path.name}, entry {number + 1}"
        if row := checked(row, keys, place, problems):
            yield number, place, row


def read_lines(
    path: Path, keys: Collection[str] | Mapping[str, type], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file with one JSON object per line, each with its place in words; empty lines are passed over.

    Args:
        path: the file.
        keys: see :func:`checked`.
        problems: notes lines that are no JSON object, lack a key or have a wrong type; they are left out.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path.name}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:  # of JSON or of its encoding
                problems.note(place, f"no JSON ({error})")
                continue
            if row := checked(row, keys, place, problems):
                yield place, row


def checked(row: Any, keys: Collection[str] | Mapping[str, type], place: str, problems: Problems) -> dict[str, Any] | None:
    """The row if it is an object with these keys, of these types if they are given; else None, and why is noted."""
    if not isinstance(row, dict):
        problems.note(place, "no JSON object")
        return None
    if missing := [key for key in keys if key not in row]:
        problems.note(place, f"{', '.join(map(repr, missing))} missing")
        return None
    types = keys if isinstance(keys, Mapping) else {}
    if wrong := [f"{key!r} is no {JSON_TYPES[kind]}" for key, kind in types.items() if not isinstance(row[key], kind)]:
        problems.note(place, ", ".join(wrong))
        return None
    return row


def read_tsv(path: Path, columns: Collection[str], problems: Problems) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table with tabs between its cells, each with its place in words; cells by the name of their column.

    Args:
        path: the file.
        columns: what the header must have, in lower case; there, casing does not matter.
        problems: notes rows with more or fewer cells than the header; they are left out.

    Raises:
        ConfigError: a column is missing, or it is no text.
    """
    limit = csv.field_size_limit(sys.maxsize)  # cells hold images
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t")
            header = [name.strip().lower() for name in next(reader, [])]
            if missing := [name for name in columns if name not in header]:
                raise ConfigError(f"{path} is not the official file: its first line names no column {missing[0]!r}")
            line = reader.line_num + 1
            for cells in reader:
                place, line = f"{path.name}, line {line}", reader.line_num + 1  # a cell may go on over several lines
                if cells and len(cells) != len(header):
                    problems.note(place, f"{len(cells)} cells, unlike the {len(header)} of the header")
                elif cells:
                    yield place, dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no table: {error}; download it again") from error
    finally:
        csv.field_size_limit(limit)
