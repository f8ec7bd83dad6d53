"""Where images come from: files, URLs, base64 texts, arrays of pixels; all that transformers' processors take, and bytes.

Nothing here decodes an image file. No message contains one: base64 texts and bytes are named by their kind.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from io import BytesIO
from os import PathLike, fspath
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias
from urllib.error import HTTPError
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import Request, url2pathname, urlopen

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

from lit_eve.errors import ConfigError, SampleError
from lit_eve.files import local_path

ImageSource: TypeAlias = "bytes | str | PathLike[str] | Image.Image"
"""What is quick to open: the content of a file, its path, or an image that is open already."""

SOURCE_KEYS = ("image", "url", "path", "base64", "image_url")
"""Under which keys an image part of a message holds its image (transformers, OpenAI)."""

TIMEOUT = 60.0  # seconds in which a server has to answer
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?=://)")
_LONGEST_NAME = 120  # characters of a path or URL that a message repeats
_DATA = re.compile(r"[A-Za-z0-9+/=\s]{64,}|.{256,}", re.DOTALL)  # a text that is no path that somebody wrote


def fetch(source: Any, name: str) -> ImageSource:
    """The image file, its path, or the open image behind anything that stands for an image.

    Args:
        source: a path (``~`` is the home folder), a URL (``http:``, ``https:``, ``file:``, ``data:``), a base64 text, the
            bytes of a file, an open file, a PIL image, the row of an image column of ``datasets`` (``{"bytes": ...,
            "path": ...}``), or an array or tensor of pixels: (H, W), (C, H, W) or (H, W, C), C in 1, 3, 4, integers or floats
            in 0..255, or floats in 0..1.
        name: what error messages call it.

    Raises:
        SampleError: it is none of these, or cannot be had.
    """
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, Mapping):
        return _fetch_entry(source, name)
    if isinstance(source, str):
        return _fetch_text(source, name)
    if isinstance(source, PathLike):
        return _path(source, name)
    if hasattr(source, "__array__"):
        return _to_image(source, name)
    if callable(getattr(source, "read", None)):
        return _read(source, name)
    raise SampleError(
        f"{name}: the image cannot be opened: it is no path, URL, base64 text, bytes, array or PIL image, "
        f"but {type(source).__name__}"
    )


def describe(source: Any) -> str:
    """How a message may call an image that has no name: its path or URL, or "image"; never the image itself."""
    if isinstance(source, PathLike):
        return fspath(source)
    if not isinstance(source, str) or source[:5].lower() == "data:":
        return "image"
    if not source.lower().startswith(("http:", "https:", "file:")) and not _is_there(source) and _holds_data(source):
        return "image"
    return _shorten(source)


def _fetch_entry(source: Mapping[str, Any], name: str) -> ImageSource:
    key = next((key for key in ("bytes", *SOURCE_KEYS) if source.get(key) is not None), None)
    if key is None:
        raise SampleError(f"{name}: a dict that holds an image needs one of the keys bytes, {', '.join(SOURCE_KEYS)}")
    text = source[key]
    if key != "base64":
        return fetch(text, name)
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    if not isinstance(text, str):
        raise SampleError(f"{name}: the key base64 must hold a text, got {type(text).__name__}")
    return _decode_data_url(text, name) if text[:5].lower() == "data:" else _decode(text, name)


def _fetch_text(text: str, name: str) -> ImageSource:
    scheme = text[:8].lower()
    if scheme.startswith(("http://", "https://")):
        return download(text, name)
    if scheme.startswith("data:"):
        return _decode_data_url(text, name)
    if scheme.startswith("file:"):
        return _path_of_url(text, name)
    if not _is_there(text):
        if (other := _SCHEME.match(text)) is not None:
            raise SampleError(f"{name}: images are fetched from http:, https:, file: and data:, not from {other[0]}")
        content = _as_base64(text)
        if content:
            return content
        if _holds_data(text):
            raise SampleError(f"{name}: a text of {len(text)} characters is no path of a file, no URL and no image in base64")
    return _path(text, name)


def _path(text: str | PathLike[str], name: str) -> Path:
    try:
        return Path(local_path(text))
    except (ConfigError, ValueError) as error:  # ValueError: a zero byte
        raise SampleError(f"{name}: the image cannot be opened: {error}") from error


def _is_there(text: str) -> bool:
    return os.path.exists(os.path.expanduser(text))  # False also for texts that are no names


def _holds_data(text: str) -> bool:
    return _DATA.fullmatch(text) is not None or bool(_as_base64(text))


def _as_base64(text: str) -> bytes:
    """The image that a text holds in base64; empty if it holds none. Short words are base64 too, but no images."""
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
        Image.open(BytesIO(content)).close()
    except Exception:  # no base64, or no image; Pillow raises errors of all kinds
        return b""
    return content


def _decode_data_url(url: str, name: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma:
        raise SampleError(f"{name}: the data URL has no comma, which stands before the image")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(data)
    return _decode(unquote(data), name)


def _decode(text: str, name: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise SampleError(f"{name}: the image is not valid base64: {error}") from error


def _path_of_url(url: str, name: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise SampleError(f"{name}: {_shorten(url)} is a file of another machine")
    return Path(url2pathname(parts.path))


def download(
    url: str, name: str, max_bytes: int | None = None, open_url: Callable[..., AbstractContextManager[BinaryIO]] = urlopen
) -> bytes:
    """What a server sends.

    Args:
        url: ``http:`` or ``https:``.
        name: what error messages call it.
        max_bytes: no more are read.
        open_url: opens the request, given its ``timeout``; it may have a say in where requests go.

    Raises:
        SampleError: it cannot be had, or is larger.
    """
    what = "the image" if name == _shorten(url) else _shorten(url)
    try:
        request = Request(url, headers={"User-Agent": "lit_eve"})  # some servers refuse Python's own
        with open_url(request, timeout=TIMEOUT) as response:
            content = response.read() if max_bytes is None else response.read(max_bytes + 1)
    except Exception as error:  # no network, no such host or page, an interrupted transfer, a URL that is none
        reason = f"HTTP {error.code} {error.reason}" if isinstance(error, HTTPError) else getattr(error, "reason", error)
        raise SampleError(f"{name}: {what} cannot be downloaded: {reason}") from error
    if max_bytes is not None and len(content) > max_bytes:
        raise SampleError(f"{name}: {what} has more than {max_bytes:,} bytes, the limit of a download")
    return content


def _read(file: Any, name: str) -> bytes:
    try:
        if file.seekable():
            file.seek(0)  # as Pillow does
        content = file.read()
    except Exception as error:  # closed, or whatever the file is made of
        raise SampleError(f"{name}: the image cannot be read: {error}") from error
    if not isinstance(content, bytes):
        raise SampleError(f"{name}: a file that holds an image must be opened in binary mode")
    return content


def _to_image(source: Any, name: str) -> Image.Image:
    """Pixels as an image; where three sizes may be the channels, the first is, as for transformers."""
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu()
        source = source.float() if source.is_floating_point() else source  # numpy knows no bfloat16
    pixels = np.asarray(source)
    if pixels.ndim == 3:
        pixels = _channels_last(pixels, name)
    elif pixels.ndim != 2:
        raise SampleError(f"{name}: an array of pixels has 2 or 3 dimensions, got the shape {pixels.shape}")
    if pixels.size == 0:
        raise SampleError(f"{name}: an array of the shape {pixels.shape} has no pixels")
    return Image.fromarray(np.ascontiguousarray(_to_uint8(pixels, name)))


def _channels_last(pixels: np.ndarray, name: str) -> np.ndarray:
    """(C, H, W) or (H, W, C) -> (H, W, C), or (H, W) of one channel."""
    for channels in ((1, 3), (4,)):
        try:
            layout = infer_channel_dimension_format(pixels, channels)
        except ValueError:
            continue
        pixels = pixels.transpose(1, 2, 0) if layout == ChannelDimension.FIRST else pixels
        return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    raise SampleError(f"{name}: an array of pixels has 1, 3 or 4 channels, first or last, got the shape {pixels.shape}")


def _to_uint8(pixels: np.ndarray, name: str) -> np.ndarray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "iuf":
        raise SampleError(f"{name}: an array of pixels must hold integers or floats, got {pixels.dtype}")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 255):  # also where one is NaN
        raise SampleError(
            f"{name}: pixels must be in 0..255, or floats in 0..1, got {low:g} to {high:g}: give them before normalisation"
        )
    if pixels.dtype.kind == "f":
        pixels = np.rint(pixels.astype(np.float64) * (255 if high <= 1 else 1))
    return pixels.astype(np.uint8)


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."
