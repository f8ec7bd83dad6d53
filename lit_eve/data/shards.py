"""WebDataset shards: tar files in which the members of a sample stand next to each other.

    000042.json     {"id": ..., "conversations": [{"from": "human", "value": "<image>\\n..."}, ...], "image": ..., ...}
    000042.jpg      its image; several are 000042.0.jpg, 000042.1.jpg, ...; a text-only sample has none

Shards that ``img2dataset`` made (``.jpg``, ``.txt`` and a ``.json`` without conversation) are read as captioned images.

A sample is one range of bytes in its tar, hence one read: :class:`ShardReader` needs (shard, offset, size) and nothing else.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from glob import glob
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from PIL import Image

from lit_eve.errors import ConfigError, SampleError
from lit_eve.files import local_path
from lit_eve.processing.sample import Sample

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm"})
TEXT_EXTENSIONS = frozenset({"json", "txt"})

_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
_MAX_KEY = 80  # a name in a plain tar header has 100 bytes


def list_shards(path: str | os.PathLike[str]) -> list[Path]:
    """The tar files of a folder, of a pattern (``shards/part-*.tar``), or the one that is named; sorted.

    Raises:
        ConfigError: there is none.
    """
    path = Path(local_path(path))
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        problem = f"{path} holds no shards (*.tar)"
    else:
        shards = sorted(Path(name) for name in glob(str(path)))
        problem = f"{path} does not exist"
    if not shards:
        raise ConfigError(problem)
    return [shard.absolute() for shard in shards]


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


def parse_sample(key: str, members: Mapping[str, bytes]) -> Sample:
    """A sample from its members.

    Args:
        key: the sample's name in its shard.
        members: contents by extension. Images may be left out when only the conversation is wanted: see ``num_images``.

    Raises:
        SampleError: no text, broken JSON, or not the images that it names.
    """
    sample = parse_text(key, members)
    places = sorted((place, ext) for ext in members if (place := image_place(ext)) is not None)
    sample.images = [members[ext] for _, ext in places]
    check_images(sample, len(sample.images))
    return sample


def parse_text(key: str, members: Mapping[str, bytes]) -> Sample:
    """The sample without its images; everything in the JSON but the conversation becomes metadata."""
    record: Any = {}
    if "json" in members:
        try:
            record = json.loads(members["json"])
        except ValueError as error:
            raise SampleError(f"{key}: its JSON cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise SampleError(f"{key}: its JSON is no object with a conversation")
    conversation = record.pop("conversations", None) or record.pop("messages", None)
    if conversation is None:
        caption = members["txt"].decode("utf-8", "replace") if "txt" in members else record.get("caption")
        if not isinstance(caption, str):
            raise SampleError(f"{key}: it has neither a conversation (JSON key 'conversations') nor a caption")
        conversation = caption_conversation(caption)
    return Sample(key, conversation, metadata=record)


def caption_conversation(caption: str) -> list[dict[str, str]]:
    """A caption as the conversation that training takes it for."""
    return [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption.strip()}]


def is_whole(path: Path, end: int) -> bool:
    """Whether a tar ends at this byte, behind its last member: a block of zeros stands there. tarfile itself does not ask."""
    with open(path, "rb") as file:
        file.seek(end)
        return file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE


def check_images(sample: Sample, found: int) -> None:
    """Raise SampleError when the JSON names another number of images than the shard holds."""
    names = sample.metadata.get("image")
    named = len(names) if isinstance(names, list) else int(bool(names))
    if "image" in sample.metadata and named != found:
        raise SampleError(f"{sample.key}: its JSON names {named} images, but the shard holds {found}")


class ShardReader:
    """Random access to the samples of many shards; a handful of files stay open.

    Args:
        paths: the shards; samples are addressed by their place in this list.
        max_open: files that are kept open at a time.
    """

    def __init__(self, paths: Sequence[Path], max_open: int = 32) -> None:
        self.paths = list(paths)
        self.max_open = max_open
        self._files: OrderedDict[int, BinaryIO] = OrderedDict()

    def read(self, shard: int, offset: int, size: int) -> Sample:
        """The sample in ``size`` bytes from ``offset``.

        Raises:
            SampleError: the shard cannot be read there, or what stands there is no usable sample.
        """
        path = self.paths[shard]
        try:
            data = os.pread(self._open(shard).fileno(), size, offset)
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}
        except (OSError, tarfile.TarError, AttributeError) as error:
            raise SampleError(f"{path}: bytes {offset} to {offset + size} hold no sample: {error}") from error
        keys = {split_name(name)[0] for name in members}
        if len(keys) != 1:
            raise SampleError(f"{path}: bytes {offset} to {offset + size} hold no sample; was the shard replaced?")
        return parse_sample(keys.pop(), {split_name(name)[1]: data for name, data in members.items()})

    def _open(self, shard: int) -> BinaryIO:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            if len(self._files) >= self.max_open:
                self._files.popitem(last=False)[1].close()
            self._files[shard] = open(self.paths[shard], "rb")  # noqa: SIM115 - stays open
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:  # open files do not travel to worker processes
        return {**self.__dict__, "_files": OrderedDict()}


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

        self.folder = Path(folder)
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

    def write(self, record: Mapping[str, Any], images: Iterable[bytes | str | os.PathLike[str] | Image.Image] = ()) -> str:
        """Add a sample.

        Args:
            record: ``conversations`` in LLaVA's format, ``id``, and whatever else shall be kept.
            images: contents or paths of image files (copied as they are), or PIL images (written as PNG).

        Returns:
            The sample's key in the shard: its id, without characters that tar and WebDataset give a meaning to.

        Raises:
            SampleError: no conversation, text that is no Unicode, or an image that is no image file.
        """
        if not record.get("conversations"):
            raise SampleError(f"{record.get('id', 'sample')}: there is no conversation (key 'conversations')")
        name = str(record.get("id", self._writer.total))
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
        try:
            members["json"] = json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:  # half of a pair, as "\ud83d" in a file that was cut by characters
            raise SampleError(f"{key}: its text is no Unicode: {error.reason}") from error
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


def _image_bytes(image: bytes | str | os.PathLike[str] | Image.Image, name: str) -> tuple[bytes, str]:
    """Contents and extension of an image file."""
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return buffer.getvalue(), "png"
    if isinstance(image, str | os.PathLike):
        try:
            data = Path(image).read_bytes()
        except OSError as error:
            raise SampleError(f"{name}: its image cannot be read: {error}") from error
    else:
        data = bytes(image)
    for magic, extension in _MAGIC.items():
        if data.startswith(magic):
            return data, extension
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return data, "webp"
    raise SampleError(f"{name}: its image is no image file of a known kind")
