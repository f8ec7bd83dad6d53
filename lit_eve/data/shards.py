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
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from PIL import Image, ImageOps

from lit_eve.data.records import CONVERSATION_KEYS, conversation_of, images_named
from lit_eve.data.tar import groups_in, image_place
from lit_eve.errors import SampleError
from lit_eve.processing.formats import FORMATS
from lit_eve.processing.images import image_format
from lit_eve.processing.sample import Sample, naming

# The usual kinds need no look at more than their first bytes.
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"BM": "bmp", b"II*\0": "tif", b"MM\0*": "tif"}
_MAX_KEY = 80  # a name in a plain tar header has 100 bytes


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
        except (ValueError, RecursionError) as error:
            raise SampleError(f"{key}: its JSON cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise SampleError(f"{key}: its JSON is no object with a conversation")
    try:
        caption = members["txt"].decode("utf-8-sig") if "txt" in members else None
    except UnicodeDecodeError as error:
        raise SampleError(f"{key}: its caption is no UTF-8: {error.reason} at byte {error.start}") from error
    with naming(key):
        conversation, used = conversation_of(record, caption)
    if used in CONVERSATION_KEYS:
        del record[used]
    return Sample(key, conversation, metadata=record)


def check_images(sample: Sample, found: int) -> None:
    """Raise SampleError when the JSON names another number of images than the shard holds."""
    for key, names in images_named(sample.metadata).items():
        if len(names) != found:
            raise SampleError(f"{sample.key}: its JSON names {len(names)} images, but the shard holds {found} (key {key!r})")


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
            tar = tarfile.open(fileobj=io.BytesIO(data), mode="r:")  # noqa: SIM115 - closes nothing
            groups = list(groups_in(tar))
            if len(groups) != 1:
                raise SampleError(f"{path}: bytes {offset} to {offset + size} hold no sample; was the shard replaced?")
            (group,) = groups
            if group.fault_in_place is not None:
                raise SampleError(f"{group.key}: {group.fault_in_place}")
            members = {member.extension: member.read() for member in group.members}
        except (OSError, tarfile.TarError) as error:
            raise SampleError(f"{path}: bytes {offset} to {offset + size} hold no sample: {error}") from error
        return parse_sample(group.key, members)

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
