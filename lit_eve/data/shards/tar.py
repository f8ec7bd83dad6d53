"""The samples of a tar, whoever made it.

Passed over are directories, devices, and what file managers leave: names that begin with a full stop (``._cat.jpg`` and
``.DS_Store`` of macOS) and all in ``__MACOSX``. Names that are no UTF-8 are read with escapes (``caf\\xe9.jpg``). Archives that
were put one behind the other with ``cat`` are read to the last. What cannot be read is said, never passed over.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from lit_eve.data.shards.foreign import foreign_kind
from lit_eve.errors import ConfigError
from lit_eve.processing.formats import IMAGE_EXTENSIONS

TEXT_EXTENSIONS = frozenset({"json", "txt"})
_OTHER_MEDIA = {
    **dict.fromkeys(("mp4", "m4v", "avi", "mov", "mkv", "webm", "mpg", "mpeg"), "a video"),
    **dict.fromkeys(("wav", "mp3", "flac", "ogg", "opus", "m4a", "aac"), "a sound"),
}
_UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BROKEN = (OSError, tarfile.TarError, ValueError, IndexError, OverflowError)  # what tarfile raises for damaged headers
_CHUNK = 1 << 20


class DamagedTar(ConfigError):
    """A tar that cannot be read to its end.

    Args:
        key: of the sample that was being read; what came before it was given.
    """

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True)
class Member:
    """A file of a sample.

    Args:
        name: in the tar, in printable characters.
        extension: in lower case; what follows the first full stop of the name.
        info: its header.
        tar: the archive.
    """

    name: str
    extension: str
    info: tarfile.TarInfo
    tar: tarfile.TarFile

    @property
    def end(self) -> int:
        """The byte of the file behind its contents."""
        size = 0 if self.is_link else self.info.size
        return self.info.offset_data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE

    @property
    def is_link(self) -> bool:
        return self.info.islnk() or self.info.issym()

    def open(self) -> IO[bytes]:
        """The contents; of a link, those of the member that it points to.

        Raises:
            OSError: it cannot be read, or a link points to nothing in this tar.
        """
        try:
            file = self.tar.extractfile(self.info)
        except (KeyError, RecursionError, tarfile.TarError) as error:
            raise OSError(f"{self.name} cannot be read: {_reason(self, error)}") from error
        if file is None:
            raise OSError(f"{self.name} cannot be read: {_reason(self, None)}")
        return file

    def read(self) -> bytes:
        """All of the contents.

        Raises:
            OSError: as ``open``, or the tar ends before them.
        """
        try:
            with self.open() as file:
                return file.read()
        except tarfile.TarError as error:
            raise OSError(f"{self.name} cannot be read: {error}") from error


def _reason(member: Member, error: Exception | None) -> str:
    if member.is_link:
        return f"it is a link to {printable(member.info.linkname)}, which is no file of this shard"
    return str(error)


@dataclass(frozen=True)
class Group:
    """The members of a sample: they have one key and stand next to each other."""

    key: str
    members: list[Member]

    @property
    def fault(self) -> str | None:
        """Why no sample can be made of them, whoever reads them."""
        extensions: set[str] = set()
        for member in self.members:
            if member.extension in extensions:
                return f"its shard holds {self.key}.{member.extension} more than once"
            extensions.add(member.extension)
            if (kind := _OTHER_MEDIA.get(member.extension.rpartition(".")[2])) is not None:
                return f"its shard holds {kind} ({member.name}); samples are made of images and text"
        dotted = [member for member in self.members if member.extension.rpartition(".")[2] in TEXT_EXTENSIONS]
        if dotted and TEXT_EXTENSIONS.isdisjoint(extensions):
            front, _, last = dotted[0].extension.rpartition(".")
            better = f"{self.key.rpartition('/')[2]}_{front.replace('.', '_')}.{last}"
            return (
                f"it has no text; the key of a sample ends at the first full stop of a name, so that {dotted[0].name} is no "
                f"text of its own: name it {better} or so"
            )
        return None

    @property
    def fault_in_place(self) -> str | None:
        """Why the sample cannot be read at its place, in one piece; packed again, it may."""
        for member in self.members:
            if member.is_link or member.info.issparse():
                what = f"a link to {printable(member.info.linkname)}" if member.is_link else "a sparse file"
                return f"{member.name} is {what}; pack the shards again, with lit-eve pack --annotations FOLDER --output NEW"
        return self.fault


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member as WebDataset sees them: the key ends at the first dot after the last slash."""
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def image_place(extension: str) -> int | None:
    """The place of an image among those of its sample ("2.jpg" -> 2, "jpg" -> 0); None for what is no image."""
    number, _, kind = extension.rpartition(".")
    if kind not in IMAGE_EXTENSIONS:
        return None
    return int(number) if number.isdecimal() else 0


def printable(name: str) -> str:
    """A name with escapes for bytes that are no UTF-8, and for control characters."""
    if (name.isascii() and name.isprintable()) or _UNREADABLE.search(name) is None:
        return name
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return _UNREADABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), name)


def groups_of(path: Path) -> Iterator[Group]:
    """The samples of a tar. Their members can be read until the next one is asked for.

    Raises:
        DamagedTar: it is no tar, or is cut off or damaged; samples before that were given.
    """
    count = 0
    with _open(path) as file:
        start: int | None = 0
        while start is not None:
            group: Group | None = None
            try:
                file.seek(start)
                tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - members are read from it later
                for new in groups_in(tar):
                    if group is not None:
                        yield group
                        count += 1
                    group = new
                start = _next_archive(file, tar.offset)
            except _BROKEN as error:
                key = "" if group is None else group.key
                if not key and not count and isinstance(error, tarfile.TarError):
                    raise DamagedTar(f"shard {path} {foreign_kind(path) or f'cannot be read: {error}'}") from error
                raise DamagedTar(f"shard {path} is cut off or damaged after {count} samples: {error}", key) from error
            if group is not None:
                yield group
                count += 1


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DamagedTar(f"shard {path} cannot be read: {error}") from error


def groups_in(tar: tarfile.TarFile) -> Iterator[Group]:
    """The samples of one archive, each as it begins; its members are all there when the next one does, or none follows.

    Raises:
        OSError, tarfile.TarError, ValueError: the archive is cut off or damaged.
    """
    group: Group | None = None
    for info in tar:
        if not (info.isfile() or info.islnk() or info.issym()) or _is_hidden(info.name):
            continue
        name = printable(info.name)
        key, extension = split_name(name)
        if group is None or key != group.key:
            group = Group(key, [])
            yield group
        group.members.append(Member(name, extension, info, tar))


def _is_hidden(name: str) -> bool:
    return (name.startswith(".") or "/." in name or "__MACOSX" in name) and any(
        part == "__MACOSX" or part.startswith(".") and part not in (".", "..") for part in name.split("/")
    )


def _next_archive(file: BinaryIO, end: int) -> int | None:
    """Where another archive begins behind the end of one.

    Raises:
        OSError: the archive has no end.
    """
    file.seek(end)
    data = file.read(tarfile.BLOCKSIZE)
    if data != tarfile.NUL * tarfile.BLOCKSIZE:
        raise OSError(f"no member and no end of the archive stands at byte {end}")
    while data := file.read(_CHUNK):
        rest = data.lstrip(tarfile.NUL)
        if rest:
            place = file.tell() - len(rest)
            return place - (place - end) % tarfile.BLOCKSIZE
    return None
