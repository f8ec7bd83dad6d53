"""The many ways in which callers of transformers hand over images and conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from lit_eve.errors import ConfigError, SampleError
from lit_eve.processing.images import ImageSource

_SOURCE_KEYS = ("image", "url", "path", "base64", "image_url")


def is_single(conversation: Sequence[Any]) -> bool:
    """Whether this is one conversation, not a list of them."""
    return not conversation or isinstance(conversation[0], Mapping)


def images_of(conversation: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the image parts of a conversation in the format of transformers (or OpenAI) point to, in order.

    Raises:
        SampleError: a part says that it is an image, and does not say which.
    """
    images = []
    for message in conversation:
        content = message.get("content")
        for part in content if isinstance(content, Sequence) and not isinstance(content, str) else ():
            if not isinstance(part, Mapping) or part.get("type") not in ("image", "image_url"):
                continue
            source = next((part[key] for key in _SOURCE_KEYS if part.get(key) is not None), None)
            if source is None:
                raise SampleError(f"an image of the conversation needs one of the keys {', '.join(_SOURCE_KEYS)}")
            images.append(source["url"] if isinstance(source, Mapping) else source)
    return images


def deal(images: Any, places: Sequence[int]) -> list[list[Any]]:
    """Images for each prompt: a nested list as it is; a flat one is dealt out by the number of places.

    Raises:
        SampleError: there are more or fewer images than places.
    """
    if images is None:
        images = []
    elif not isinstance(images, list | tuple):
        images = [images]
    if images and all(isinstance(row, list | tuple) for row in images):
        if len(images) != len(places):
            raise SampleError(f"there are {len(places)} prompts, but images for {len(images)}")
        return [list(row) for row in images]
    if len(images) != sum(places):
        raise SampleError(f"the text has {sum(places)} places for images (<image>), but there are {len(images)} images")
    rest = iter(images)
    return [[next(rest) for _ in range(count)] for count in places]


def fetch(source: Any, name: str) -> ImageSource:
    """An image from wherever transformers takes them: also URLs, base64 texts and arrays (H, W, 3) of uint8.

    Raises:
        SampleError: it cannot be had.
    """
    if isinstance(source, str) and source.startswith(("http://", "https://", "data:")):
        from transformers.image_utils import load_image

        try:
            return load_image(source)
        except Exception as error:  # network, encoding and decoder errors of all kinds
            raise SampleError(f"{name}: the image cannot be fetched: {error}") from error
    if hasattr(source, "__array__") and not isinstance(source, Image.Image):
        array = np.asarray(source)
        if array.dtype != np.uint8:
            raise SampleError(f"{name}: an array of pixels must be uint8, got {array.dtype}")
        return Image.fromarray(array)
    return source


def image_names(key: str, count: int) -> list[str]:
    """What error messages call the images of a sample."""
    return [key] if count == 1 else [f"{key}, image {index + 1} of {count}" for index in range(count)]


def pad_rows(rows: Sequence[Sequence[int]], pad: int, side: str, equal: bool) -> dict[str, list[list[int]]]:
    """``input_ids`` and ``attention_mask`` of rows of ids.

    Args:
        rows: token ids, of any lengths.
        pad: the id that fills up short rows; masked.
        side: where it goes, "left" or "right".
        equal: whether to fill up at all.
    """
    if side not in ("left", "right"):
        raise ConfigError(f"padding_side must be 'left' or 'right', got {side!r}")
    width = max(map(len, rows)) if equal else 0
    input_ids, attention_mask = [], []
    for row in rows:
        filler = [pad] * (width - len(row))
        zeros, ones = [0] * len(filler), [1] * len(row)
        input_ids.append([*filler, *row] if side == "left" else [*row, *filler])
        attention_mask.append(zeros + ones if side == "left" else ones + zeros)
    return {"input_ids": input_ids, "attention_mask": attention_mask}
