"""Reading shards: a sample is one range of bytes in its tar, hence one read of (shard, offset, size)."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lit_eve.data.shards.records import CONVERSATION_KEYS, conversation_of, images_named
from lit_eve.data.shards.tar import groups_in, image_place
from lit_eve.errors import SampleError
from lit_eve.processing.sample import Sample, naming


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
