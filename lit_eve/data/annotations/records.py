"""A record of annotations becomes the record of a shard, and the images that go with it."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_eve.data.shards.records import (
    CONVERSATION_KEYS,
    FILE_KEYS,
    IMAGE_KEYS,
    conversation_of,
    images_in,
    images_named,
    plain_key,
)
from lit_eve.errors import SampleError
from lit_eve.processing.images import image_format
from lit_eve.processing.sample import Slot, parse_conversation
from lit_eve.processing.sources import SOURCE_KEYS, fetch

_BASE64 = re.compile(r"[A-Za-z0-9+/=\s]{64,}")
_LONGEST_NAME = 120  # characters of a name that messages repeat


def shard_record(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """A record as shards hold it, and its images.

    Returns:
        the record with its conversation under ``conversations``, the rest as it was, without pictures; and what its image key
        names (:mod:`lit_eve.data.shards.records`), or else what the image parts of its messages do: names of files, or
        anything that :func:`lit_eve.processing.sources.fetch` takes.

    Raises:
        SampleError: no conversation or caption, names that are no text, or two keys that name different images.
    """
    conversation, used = conversation_of(record)
    for key, value in record.items():
        if plain_key(key) in ("image", "images") and value and not images_named({key: value}):
            raise SampleError(f"the key {key!r} should be the name of a file or a list of names")
    named = images_named(record) or {"": images_in(conversation)}
    if not any(named.values()) and _has_place(conversation):
        named = dict(list(images_named(record, FILE_KEYS).items())[:1]) or named
    images = next(iter(named.values()))
    for key, others in named.items():
        if others != images:
            raise SampleError(f"the keys {next(iter(named))!r} and {key!r} name different images")
    dropped = {"messages", used if used in CONVERSATION_KEYS else None} - {"conversations"}
    dropped |= {key for key, value in named.items() if any(map(_holds, value))}
    kept = {key: value for key, value in record.items() if key not in dropped and not (_is_image_key(key) and not value)}
    return {**kept, "conversations": _without_pictures(conversation)}, [_source(image) for image in images]


def read_image(source: Any, folder: Path | None, name: str) -> bytes:
    """The content of an image file.

    Args:
        source: from ``shard_record``, or the content itself.
        folder: what names are relative to; None where there are none.
        name: what error messages call it.

    Raises:
        SampleError: it cannot be had.
    """
    if isinstance(source, str):
        if source[:8].lower().startswith(("http://", "https://")):
            raise SampleError(f"{name}: this is a URL; download the images first, for example with img2dataset")
        is_path = not _holds(source) and source[:5].lower() != "file:"
        source = folder / source if is_path else fetch(source, name)
    else:
        source = fetch(source, name)
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except FileNotFoundError:
        raise SampleError(f"{name}: there is no such image file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise SampleError(f"{name}: the image file cannot be read: {getattr(error, 'strerror', error)}") from error


def image_labels(images: Sequence[Any]) -> list[str]:
    """What messages call images: by their names; those without one, by their number. Never by themselves."""
    names = [image[:_LONGEST_NAME] if isinstance(image, str) and not _holds(image) else None for image in images]
    return [name or f"image {number} of {len(names)}" for number, name in enumerate(names, 1)]


def _source(entry: Any) -> Any:
    """The name of a file where an entry of an image column has one, else the entry."""
    if not isinstance(entry, Mapping) or _holds(entry):
        if isinstance(entry, Mapping) and isinstance(entry.get("bytes"), list):
            return _bytes_of(entry["bytes"])
        return entry
    return next((entry[key] for key in ("path", "file_name", *SOURCE_KEYS) if isinstance(entry.get(key), str)), entry)


def _bytes_of(values: list[Any]) -> bytes:
    try:
        return bytes(values)
    except (TypeError, ValueError) as error:
        raise SampleError("the bytes of an image must be numbers from 0 to 255") from error


def _holds(entry: Any) -> bool:
    """Whether an entry is a picture itself, not the name of one."""
    if isinstance(entry, Mapping):
        return any(entry.get(key) is not None for key in ("bytes", "base64")) or any(
            isinstance(entry.get(key), str) and _holds(entry[key]) for key in SOURCE_KEYS
        )
    if not isinstance(entry, str):
        return False
    if entry[:5].lower() == "data:":
        return True
    if _BASE64.fullmatch(entry) is None:  # tables hold images in base64, without a prefix
        return False
    try:
        return bool(image_format(b64decode(entry)))
    except ValueError:  # SampleError among them
        return False


def _without_pictures(conversation: Any) -> Any:
    """The conversation, its image parts without the pictures that they hold."""
    if not isinstance(conversation, list):
        return conversation
    return [
        {**message, "content": [_bare(part) for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in conversation
    ]


def _bare(part: Any) -> Any:
    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url"):
        return part
    pictures = {key for key in SOURCE_KEYS if _holds(part.get(key)) or (key == "base64" and part.get(key) is not None)}
    return {key: value for key, value in part.items() if key not in pictures}


def _has_place(conversation: Any) -> bool:
    try:
        return any(part is Slot.IMAGE for message in parse_conversation(conversation) for part in message.parts)
    except SampleError:  # judged later
        return False


def _is_image_key(key: str) -> bool:
    return plain_key(key) in IMAGE_KEYS
