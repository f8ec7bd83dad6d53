"""Writing shards: a tar appears under its name only when it is whole."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeAlias

from PIL import Image, ImageOps

from lit_eve.errors import SampleError
from lit_eve.files import output_folder
from lit_eve.processing.formats import FORMATS
from lit_eve.processing.images import image_format

# The usual kinds need no look at more than their first bytes.
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
_MAX_KEY = 80  # a name in a plain tar header has 100 bytes


Images: TypeAlias = Iterable[bytes | str | os.PathLike[str] | Image.Image]
"""Contents or paths of image files, or PIL images."""


class ShardWriter:
    """Writes samples to ``folder/prefix-000000.tar``, ``-000001.tar``, ...

    A shard appears under its name only when it is whole: it is written to ``*.tar.tmp`` and renamed. After an exception the
    unfinished one is removed, so that what is there can be trusted and a caller can go on at the next shard.

    Args:
        folder: made if it is missing.
        prefix: begin of the shards' names.
        samples_per_shard: a shard is closed after so many samples ...
        bytes_per_shard: ... or when its members pass so many bytes.
        first_shard: number of the first shard.

    Raises:
        ConfigError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        prefix: str = "shard",
        samples_per_shard: int = 10_000,
        bytes_per_shard: float = 1e9,
        first_shard: int = 0,
    ) -> None:
        import webdataset  # takes seconds to import, and only writers need it

        self.folder = Path(output_folder(folder))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.shards: list[Path] = []
        self._stream: BinaryIO | None = None
        self._keys: set[str] = set()
        self._writer = webdataset.ShardWriter(
            f"{self.folder.as_posix().replace('%', '%%')}/{prefix}-%06d.tar",
            maxcount=samples_per_shard,
            maxsize=bytes_per_shard,
            start_shard=first_shard,
            post=self._finish,
            opener=self._start,
            verbose=0,
            mtime=0,  # same samples, same bytes
        )

    def write(self, record: Mapping[str, Any], images: Images = ()) -> str:
        """Add a sample.

        Args:
            record: ``conversations`` in LLaVA's format, ``id``, and whatever else shall be kept.
            images: contents or paths of image files (copied as they are), or PIL images (written upright, as PNG).

        Returns:
            The sample's key in the shard: its id, without characters that tar and WebDataset give a meaning to.

        Raises:
            SampleError: no conversation, text that is no Unicode, or an image that is no image file of a known kind.
        """
        name = str(record.get("id", self._writer.total))
        if not record.get("conversations"):
            raise SampleError(f"{name}: there is no conversation (key 'conversations')")
        encoded = [_image_bytes(image, name) for image in images]
        if self._writer.count >= self._writer.maxcount or self._writer.size >= self._writer.maxsize:
            self._writer.next_stream()
        key = self._new_key(name)
        extensions = [ext if len(encoded) == 1 else f"{i}.{ext}" for i, (_, ext) in enumerate(encoded)]
        members: dict[str, Any] = {ext: data for ext, (data, _) in zip(extensions, encoded, strict=True)}
        record = dict(record)
        if encoded:
            files = [f"{key}.{ext}" for ext in extensions]
            record.setdefault("image", files[0] if len(files) == 1 else files)
        members["json"] = _json_bytes(record, key)
        self._writer.write({"__key__": key, **members})
        return key

    def close(self) -> None:
        """Finish the last shard."""
        self._writer.close()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        elif self._stream is not None:
            with suppress(OSError):  # where the disk is full, the end cannot be written either
                self._writer.tarstream.close()
            self._discard()

    def _new_key(self, name: str) -> str:
        base = re.sub(r"[^\w\-]+", "_", name)[:_MAX_KEY].encode("ascii", "replace").decode().replace("?", "_") or "_"
        key, repeat = base, 1
        while key in self._keys:
            repeat += 1
            key = f"{base}_{repeat}"
        self._keys.add(key)
        return key

    def _start(self, path: str) -> BinaryIO:
        self._keys.clear()
        self._stream = open(f"{path}.tmp", "wb")  # noqa: SIM115 - closed by _finish
        return self._stream

    def _finish(self, path: str) -> None:
        if self._writer.count == 0:
            self._discard()
            return
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        self._stream = None
        os.replace(f"{path}.tmp", path)
        self.shards.append(Path(path))

    def _discard(self) -> None:
        name = self._stream.name
        with suppress(OSError):
            self._stream.close()
        self._stream = None
        os.unlink(name)


def write_shards(folder: str | os.PathLike[str], samples: Iterable[tuple[Mapping[str, Any], Images]]) -> None:
    """Write records and their images into a new folder, which appears when all of them are there."""
    target = Path(output_folder(folder))
    part = target.with_name(f".{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    with ShardWriter(part) as writer:
        for record, images in samples:
            writer.write(record, images)
    os.replace(part, target)


def _json_bytes(record: Mapping[str, Any], name: str) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode()
    except (
        UnicodeEncodeError
    ):  # half of a surrogate pair in what is no text of the conversation: kept as the escape that it was
        return json.dumps(record).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise SampleError(f"{name}: it cannot be written as JSON: {error}") from error


def _image_bytes(image: bytes | str | os.PathLike[str] | Image.Image, name: str) -> tuple[bytes, str]:
    """Contents and extension of an image file."""
    if isinstance(image, Image.Image):
        return _written(image, name)
    if isinstance(image, str | os.PathLike):
        try:
            data = Path(image).read_bytes()
        except (OSError, ValueError) as error:
            raise SampleError(f"{name}: its image cannot be read: {error}") from error
    else:
        data = bytes(image)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return data, "webp"
    extension = next((extension for magic, extension in _MAGIC.items() if data.startswith(magic)), None)
    return data, extension or FORMATS[image_format(data, name)][0]


def _written(image: Image.Image, name: str) -> tuple[bytes, str]:
    """An open image as a file, without loss: PNG, or TIFF for the modes that PNG does not know. It stands upright."""
    try:
        upright = ImageOps.exif_transpose(image)
        for kind in ("PNG", "TIFF"):
            buffer = io.BytesIO()
            try:
                upright.save(buffer, format=kind)
            except (OSError, ValueError):  # of this mode
                continue
            return buffer.getvalue(), FORMATS[kind][0]
    except Exception as error:  # of Pillow's decoders, which raise errors of all kinds
        raise SampleError(f"{name}: its image cannot be decoded: {error}") from error
    raise SampleError(f"{name}: its image cannot be written: no format keeps the mode {image.mode}")
