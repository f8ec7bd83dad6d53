"""Files that are something else than what was asked for: said by name, with what to do about it."""

from __future__ import annotations

import os
import shlex

_COMPRESSED = "is compressed ({kind}), and samples are read at their place in the file: unpack it first, with {tool}"
_KINDS: list[tuple[bytes, str, str, str]] = [  # first bytes, kind, tool, sentence
    (b"\x1f\x8b", "gzip", "gunzip < {path} > NEW", _COMPRESSED),
    (b"BZh", "bzip2", "bunzip2 < {path} > NEW", _COMPRESSED),
    (b"\xfd7zXZ\0", "xz", "unxz < {path} > NEW", _COMPRESSED),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd < {path} > NEW", _COMPRESSED),
    (b"\x04\x22\x4d\x18", "lz4", "unlz4 < {path} > NEW", _COMPRESSED),
    (b"PK\x03\x04", "zip, or a spreadsheet", "unzip", "is an archive or a document ({kind}): unpack it, or save it as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x {path}", _COMPRESSED),
    (b"PAR1", "Parquet", "", "is a {kind} file: {convert}"),
    (b"ARROW1", "Arrow", "", "is an {kind} file: {convert}"),
    (b"\xff\xfe", "UTF-16", "", "is written in {kind}: convert it with iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", "", "is written in {kind}: convert it with iconv -f UTF-16 -t UTF-8"),
    (
        b"version https://git-lfs",
        "Git LFS",
        "git lfs pull",
        "is a pointer of {kind} and not the file itself: fetch it with {tool}",
    ),
    (b"<!DOCTYPE", "HTML", "", "is a page of {kind} and no data; was its download refused?"),
    (b"<!doctype", "HTML", "", "is a page of {kind} and no data; was its download refused?"),
    (b"<html", "HTML", "", "is a page of {kind} and no data; was its download refused?"),
]
_CONVERT = (
    "turn it into JSONL first, for example with pandas: read_parquet(...).to_json(..., orient='records', lines=True), after "
    "its images were written to files"
)
_HEAD = max(len(magic) for magic, *_ in _KINDS)


def foreign_kind(path: str | os.PathLike[str]) -> str | None:
    """What a file is, going by its first bytes, and what to do: "is compressed (gzip) ..."; None where nothing is known.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    for magic, kind, tool, sentence in _KINDS:
        if head.startswith(magic):
            command = tool.format(path=shlex.quote(os.fspath(path)))
            return sentence.format(kind=kind, tool=command, convert=_CONVERT)
    return None
