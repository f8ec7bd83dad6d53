"""What a record says, under whichever of the common names: its conversation or caption, its images, what is no image.

{"id": ..., "image": "coco/1.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, ...]}     LLaVA
{"messages": [{"role": "user", "content": ...}, ...], "images": [...]}                              transformers
{"file_name": "1.jpg", "text": "A cat on a mat."}                                                  a caption
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from lit_eve.errors import SampleError
from lit_eve.processing.inputs import images_of

CONVERSATION_KEYS = ("conversations", "messages", "conversation")
CAPTION_KEYS = ("caption", "text", "title", "description", "alt_text", "alt", "comment")
"""For a caption, the first of these that there is."""

IMAGE_KEYS = (
    *("image", "images", "image_path", "image_paths", "img", "imgs", "img_path", "img_paths", "image_file", "image_files"),
    *("image_name", "image_names", "picture", "pictures"),
)
"""Keys that say that their value is an image; the first of these that there is."""

FILE_KEYS = (
    *("file_name", "file_names", "filename", "filenames", "filepath", "file_path", "file", "files", "path", "paths"),
    *("image_url", "image_urls", "url"),
)
"""Keys that name an image where the record has a place for one, and something else where not."""

_MEDIA = re.compile(r"(video|audio)s?(_(path|file)s?)?")
_PLACEHOLDER = re.compile(
    r"^\s*<(video|audio|speech|sound)>|<(video|audio|speech|sound)>\s*$|<\|(video|audio)(?:_pad)?\|>",  # the last are Qwen's
    re.MULTILINE | re.IGNORECASE,
)


@lru_cache(maxsize=4096)
def plain_key(key: str) -> str:
    """A key or the name of a column, in one spelling: "Image Path" -> "image_path"."""
    return re.sub(r"[\s\-]+", "_", key.strip()).lower()


def conversation_of(record: Mapping[str, Any], caption: str | None = None) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """The conversation of a record, and the key that holds it (None where it is made of a caption from elsewhere).

    Args:
        record: as it was found.
        caption: instead of the record's own, where it has no conversation.

    Raises:
        SampleError: there is none, and no caption; or the record is about a video or a sound.
    """
    key = next((key for key in CONVERSATION_KEYS if record.get(key)), None)
    _check_media(record)
    if key is not None:
        _check_placeholders(record[key])
        return record[key], key
    if caption is None:
        key, caption = _find(record, CAPTION_KEYS)
    if not isinstance(caption, str):
        raise SampleError("there is no conversation (key 'conversations' or 'messages') and no caption (key 'caption')")
    return caption_conversation(caption), key


def caption_conversation(caption: str) -> list[dict[str, str]]:
    """A caption as the conversation that training takes it for."""
    return [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": caption.strip()}]


@lru_cache
def _ranks(keys: tuple[str, ...]) -> dict[str, int]:
    return {key: rank for rank, key in enumerate(keys)}


def images_named(record: Mapping[str, Any], keys: tuple[str, ...] = IMAGE_KEYS) -> dict[str, list[Any]]:
    """What a record names as its images, by the key that does, the most usual key first: names of files, data URLs, or entries
    of an image column."""
    ranks = _ranks(keys)
    found = [key for key in record if plain_key(key) in ranks and _is_image(record[key])]
    found.sort(key=lambda key: ranks[plain_key(key)])
    return {key: value if isinstance(value := record[key], list) else [value] for key in found}


def images_in(conversation: Any) -> list[Any]:
    """What the image parts of a conversation name; nothing where they name nothing, or it is no conversation."""
    try:
        return images_of(conversation)
    except (SampleError, AttributeError, TypeError, KeyError):  # judged by who reads the conversation
        return []


def _find(record: Mapping[str, Any], keys: Sequence[str]) -> tuple[str | None, Any]:
    """The first of the keys that the record has, in whatever spelling, and its value."""
    spelled = {plain_key(key): key for key in reversed(list(record)) if isinstance(key, str)}
    key = next((spelled[key] for key in keys if key in spelled and record[spelled[key]] not in (None, "")), None)
    return key, None if key is None else record[key]


def _is_image(value: Any) -> bool:
    """A text, an entry of an image column, or a list of these; a number or a size is something else."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str | dict) and one for one in value)
    return isinstance(value, str | dict) and bool(value)


def _check_media(record: Mapping[str, Any]) -> None:
    for key, value in record.items():
        if isinstance(value, str | list | dict) and value and (found := _MEDIA.fullmatch(plain_key(key))) is not None:
            kind = {"video": "video", "audio": "sound"}[found[1]]
            raise SampleError(f"the record is about a {kind} (key {key!r}); samples are made of images and text")


def _check_placeholders(conversation: Any) -> None:
    """Refuse a question that begins or ends a line with ``<video>`` or the like, or has ``<|video_pad|>`` anywhere: such
    records do not see what they are about.

    HTML, which has elements of that name, closes them.
    """
    if not isinstance(conversation, Sequence) or isinstance(conversation, str):
        return
    for message in conversation:
        if not isinstance(message, Mapping) or message.get("from", message.get("role")) not in ("human", "user"):
            continue
        content = message.get("value", message.get("content"))
        parts = content if isinstance(content, list) else [content]
        for part in parts:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str) and "<" in text and (found := _PLACEHOLDER.search(text)) is not None:
                kind = (found[1] or found[2] or found[3]).lower()
                if f"</{kind}>" not in text.lower():
                    raise SampleError(f"its text has a place for <{kind}>; samples are made of images and text")
