"""Uploaded images: limits that hold before anything is decoded, and what is kept of an image, never its file."""

from __future__ import annotations

import base64
from collections.abc import Collection
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from lit_eve.errors import LitEveError, SampleError
from lit_eve.processing.images import load_image

if TYPE_CHECKING:
    from lit_eve.processing import ImageGeometry

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 40_000_000
MAX_PICTURES = 8  # of a question
LONGEST_NAME = 60
PREVIEW = 640  # pixels of the longest side


@dataclass(frozen=True)
class Picture:
    """An image as the models see it.

    Attributes:
        name: what it is called on the page.
        views: as small as each geometry allows; a processor makes of them the very patches that it makes of the file.
        preview: a ``data:`` URL, for the page.
        note: what is to be said about it.
    """

    name: str
    views: dict[ImageGeometry, Image.Image]
    preview: str
    note: str = ""

    @classmethod
    def of(cls, image: Image.Image, name: str, geometries: Collection[ImageGeometry], note: str = "") -> Picture:
        """What is kept of an upright RGB image."""
        views = {geometry: geometry.settled(image) for geometry in geometries}
        small = image.copy()
        small.thumbnail((PREVIEW, PREVIEW))
        return cls(name, views, data_url(small), note)


@dataclass(frozen=True)
class Limits:
    """What an upload may be.

    Args:
        bytes: of a file.
        pixels: of an image, as its header says.
        pictures: that come with one question.
    """

    bytes: int = MAX_BYTES
    pixels: int = MAX_PIXELS
    pictures: int = MAX_PICTURES


LIMITS = Limits()


def read_picture(name: str, content: bytes, geometries: Collection[ImageGeometry], limits: Limits = LIMITS) -> Picture:
    """The image of a file that anyone may have sent.

    Args:
        name: as the sender calls it; shown, never opened.
        content: of the file.
        geometries: of the models that may see it.
        limits: hold before anything is decoded.

    Raises:
        LitEveError: it is too large, or no image that can be used.
    """
    name = plain_name(name)
    if len(content) > limits.bytes:
        raise LitEveError(f"{name}: the file has {len(content):,} bytes, more than the limit of {limits.bytes:,}")
    if not content:
        raise SampleError(f"{name}: the file is empty")
    image = load_image(content, name, max_pixels=limits.pixels)
    return Picture.of(image, name, geometries, _note(name, content))


def plain_name(name: str) -> str:
    """A file's name without folders, and no longer than can be shown."""
    name = "".join(letter for letter in str(name).replace("\\", "/").rpartition("/")[2] if letter.isprintable()).strip()
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 10]}...{name[-7:]}"
    return short or "image"


def data_url(image: Image.Image) -> str:
    """An image as a text that a page can show: a PNG while that is small, a JPEG otherwise."""
    kind = "png" if max(image.size) <= 256 else "jpeg"
    buffer = BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _note(name: str, content: bytes) -> str:
    with Image.open(BytesIO(content)) as file:
        moves = getattr(file, "n_frames", 1) > 1
    return f"{name} has several pictures: the model sees the first." if moves else ""
