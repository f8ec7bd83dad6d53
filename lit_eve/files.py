"""Paths as users write them, and files that a kill leaves old or new, never half."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from lit_eve.errors import ConfigError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def local_path(text: str | os.PathLike[str], key: str | None = None, folder: str | os.PathLike[str] = "") -> str:
    """The path that a user means; every path that is given to lit_eve goes through here, once or more often.

    - ``~`` and ``~name`` at the beginning are home folders. A folder that is called so is written ``./~name``.
    - ``..`` is the parent of what a link points to, as the system sees it and no normalisation of text does.
    - A slash at the end says nothing.
    - Variables (``$HOME``) are the shell's: a YAML has none. Where there is no such file, they are refused.

    A name on the hub, ``owner/name``, and a URL come back as they are. A union, ``one::two``, is as many paths.

    Args:
        text: the path.
        key: the setting that holds it, for error messages.
        folder: what it is relative to; default: the working directory.

    Raises:
        ConfigError: it is empty, names a user who does not exist, or a variable.
    """
    path, where = os.fspath(text), "" if key is None else f"{key}: "
    if _URL.match(path):
        return path
    if "::" in path and not os.path.lexists(path):
        return "::".join(local_path(piece, key, folder) for piece in path.split("::"))
    if not path.strip():
        raise ConfigError(f"{where}the path is empty")
    if path.startswith("~"):
        path = os.path.expanduser(path)
        if path.startswith("~"):
            user = path.split("/")[0][1:]
            raise ConfigError(f"{where}{path!r}: there is no user {user!r}; a folder of that name is written ./~{user}")
    path = str(Path(folder, path))  # without "./" and slashes at the end
    if path.startswith("~") or ".." in Path(path).parts:
        path = os.path.realpath(path)
    if (variable := _VARIABLE.search(path)) and not os.path.lexists(path):
        raise ConfigError(f"{where}{path!r} does not exist, and {variable[0]} is not replaced here: write the path in full")
    return path


def output_folder(text: str | os.PathLike[str], key: str | None = None) -> str:
    """:func:`local_path` of a folder that is to be written, which is not made here.

    Raises:
        ConfigError: as :func:`local_path`, or it cannot be a folder of this machine that this user may write.
    """
    path, where = local_path(text, key), "" if key is None else f"{key}: "
    if _URL.match(path):
        raise ConfigError(f"{where}{path} is no folder of this machine; write to a disk, and copy it from there")
    place = Path(path)
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise ConfigError(f"{where}{place} is no folder" + (f", so that {path} cannot be made" if str(place) != path else ""))
    if not os.access(place, os.W_OK | os.X_OK):
        raise ConfigError(f"{where}{path} cannot be written: this user may not write in {place}")
    return path


def path_argument(text: str) -> str:
    """:func:`local_path` as the ``type`` of an argument of argparse."""
    try:
        return local_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def same_path(one: str, other: str) -> bool:
    """Whether two texts, read as paths, are one and the same place."""
    return one == other or os.path.realpath(os.path.expanduser(one)) == os.path.realpath(os.path.expanduser(other))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file (UTF-8) that is either there as a whole or not at all, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
