"""A photo in any format becomes uint8 patches for the student.

Nothing is normalised here: ``(u8 / 255 - mean) / std`` is done by the model, on the device, so that a quarter of the bytes
travel. Resampling is Pillow's bicubic on the whole photo, as upstream (EVEv1/eve/train/train.py): bit for bit the same pixels.

Legend: H x W pooling windows, p side of a patch in pixels, P patches of an image.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BufferedIOBase, BytesIO
from typing import Any, BinaryIO

import numpy as np
import torch
from einops import rearrange
from PIL import Image, UnidentifiedImageError

from lit_eve.errors import SampleError
from lit_eve.processing.formats import OPENED_AS
from lit_eve.processing.geometries import ImageGeometry
from lit_eve.processing.sources import describe, fetch

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_PIXELS = 89_478_485  # Pillow's own first warning level: 256 MB of RGB
MAX_ASPECT_RATIO = 200.0

_ORIENTATION_TAG = 0x0112
# What the camera's orientation asks for (EXIF 2.3, section 4.6.4); 1, no change, is left out.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)


def load_image(
    source: Any,
    name: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
) -> Image.Image:
    """The upright RGB image behind ``source``; transparent pixels are seen over white.

    Args:
        source: anything that :func:`~lit_eve.processing.sources.fetch` takes; an image that is open already is left as it is.
        name: what error messages call it, usually the key of the sample.
        max_pixels: images of more pixels are refused before they are decoded. Pillow's own limit, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``, holds as well.
        max_aspect_ratio: images whose long side is more than this many times the short one are refused.

    Raises:
        SampleError: missing, truncated or no image at all, too large, or too narrow.
    """
    name = describe(source) if name is None else name
    image = _open(source, name)
    check_size(image.size, name, max_pixels, max_aspect_ratio)
    try:
        image.load()
        orientation = _orientation(image)
        image = _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError on broken files
        raise SampleError(f"{name}: the image cannot be decoded: {error or type(error).__name__}") from error
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def image_size(
    source: Any,
    name: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    max_aspect_ratio: float = MAX_ASPECT_RATIO,
) -> tuple[int, int]:
    """(width, height) that ``load_image`` would give, from the file's header alone.

    Raises:
        SampleError: as ``load_image``, except for pixels that turn out to be broken.
    """
    name = describe(source) if name is None else name
    image = _open(source, name)
    try:
        width, height = image.size
        check_size((width, height), name, max_pixels, max_aspect_ratio)
        return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)
    finally:
        if image is not source:
            image.close()


def image_format(source: Any, name: str | None = None) -> str:
    """Pillow's name of the kind of an image file, one of :data:`~lit_eve.processing.formats.FORMATS`.

    Raises:
        SampleError: it is none of them.
    """
    with _open(source, describe(source) if name is None else name) as image:
        return image.format


def patchify(image: Image.Image, geometry: ImageGeometry, images: int = 1) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """The patches of an RGB photo that the student sees, and the grids of its views.

    Each row is one patch, flattened as (channel, y, x), so that a convolution's weight reshaped to ``(out, 3 * p * p)``
    applies. Rows are ordered view by view, window by window (row-major), and row-major inside a window, so that
    ``patches.view(-1, pool * pool, 3 * p * p)`` are the pooling windows.

    Args:
        image: the photo.
        geometry: how it is resized and cut.
        images: photos of the same sample, where they share a budget.

    Returns:
        uint8 (P, 3 * p * p), and for each view its (rows, columns) in patches.
    """
    patches = [
        rearrange(
            np.asarray(view),
            "(H i y) (W j x) c -> (H W i j) (c y x)",
            i=geometry.pool_size,
            j=geometry.pool_size,
            y=geometry.patch_size,
            x=geometry.patch_size,
        )
        for view in geometry.views(image, images)
    ]
    return torch.from_numpy(np.concatenate(patches)), geometry.patch_grids(*image.size, images)


def normalize_pixels(pixels: torch.Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """(x / 255 - mean) / std per channel: (rows, 3, n) uint8 -> the same in ``dtype``; the arithmetic is float32."""
    scaled = pixels.float() / 255
    for channel in range(3):  # scalars: no buffer that a cast to bf16 would round, no copy to the device
        scaled[:, channel].sub_(mean[channel]).div_(std[channel])
    return scaled.to(dtype)


def _open(source: Any, name: str) -> Image.Image:
    """The image with its header read."""
    if not isinstance(source, BufferedIOBase):  # of an open file, the header is enough
        source = fetch(source, name)
    try:
        if isinstance(source, Image.Image):
            image = source
        else:
            image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=OPENED_AS)
    except UnidentifiedImageError as error:  # its own message names a place in memory
        raise SampleError(f"{name}: the image cannot be opened: it is no image of a known kind") from error
    except Exception as error:  # of Pillow's decoders; FileNotFoundError and DecompressionBombError among them
        raise SampleError(f"{name}: the image cannot be opened: {error}") from error
    if image.mode == "LAB":
        raise SampleError(f"{name}: the image cannot be decoded: its colours are CIE L*a*b*; convert it to RGB")
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation, as ``ImageOps.exif_transpose`` finds it once all pixels are decoded."""
    if image.format == "TIFF" and (not _is_waiting(image) or _ORIENTATION_TAG in image.tag_v2):
        return 1  # Pillow turns these upright by itself, and reports their size so, unless the tag stands in their XMP
    try:
        if image.format != "PNG" or not _is_waiting(image):
            exif = image.getexif()
        elif _has_late_orientation(image.fp):
            image.load()
            exif = image.getexif()
        else:  # PngImageFile's own would decode all pixels to look behind them
            exif = Image.Image.getexif(image)
        return exif.get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block is no reason to lose the photo
        return 1


def _is_waiting(image: Image.Image) -> bool:
    """Whether the pixels of an image file are still to be decoded."""
    return bool(getattr(image, "tile", None)) and getattr(image, "fp", None) is not None


def _has_late_orientation(file: BinaryIO) -> bool:
    """Whether a chunk behind the pixels of a PNG may hold the orientation. The file's place stays where it is."""
    place = file.tell()
    try:
        file.seek(len(b"\x89PNG\r\n\x1a\n"))
        pixels = False
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind in (b"IEND", b"fcTL") and pixels:  # the next frame of an animation
                return False
            pixels = pixels or kind == b"IDAT"
            if pixels and kind == b"eXIf":
                return True
            if pixels and kind in (b"tEXt", b"zTXt", b"iTXt"):
                keyword = file.read(min(size, 80)).split(b"\0")[0]
                if keyword in (b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp"):
                    return True
                size -= min(size, 80)
            file.seek(size + 4, 1)
        return False
    finally:
        file.seek(place)


def check_size(size: tuple[int, int], name: str, max_pixels: int, max_aspect_ratio: float) -> None:
    """Raise SampleError if an image of this (width, height) is empty, too large or too narrow."""
    width, height = size
    if min(size) < 1:
        raise SampleError(f"{name}: the image of {width} x {height} pixels is empty")
    if width * height > max_pixels:
        raise SampleError(f"{name}: the image has {width} x {height} pixels, more than the limit of {max_pixels}")
    if max(size) > max_aspect_ratio * min(size):
        raise SampleError(
            f"{name}: the image of {width} x {height} pixels is narrower than the limit of 1:{max_aspect_ratio:g}"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode == "La":  # premultiplied grey; Pillow knows no way from here to RGBA
        image = image.convert("LA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey images of more than 8 bits: 16-bit integers are scaled by 255 / 65535, floats in 0..1 by 255."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F":
        scale = 255.0 if values.max() <= 1 else 1.0
    else:  # "I" holds 16-bit files as well, and 8-bit ones that were widened
        wide = image.mode != "I" or image.format == "PPM" or values.max() > 255
        scale = 255 / 65535 if wide else 1.0
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))
