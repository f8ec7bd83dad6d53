"""A map over the image that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_eve.errors import LitEveError
from lit_eve.interpretation.recording.intercept import indices
from lit_eve.interpretation.samples import check_images
from lit_eve.processing.images import load_image
from lit_eve.processing.sources import ImageSource


def overlay(
    image: ImageSource, heat: Tensor, *, size: int | None = None, opacity: float = 0.7, colormap: str = "inferno"
) -> Image.Image:
    """The image, in grey, under its heat map.

    Args:
        image: what the model saw.
        heat: (H, W), any non-negative scale: the largest value gets the brightest colour.
        size: longest side of the result in pixels; default: the image's.
        opacity: of the heat map.
        colormap: name of a matplotlib colour map.

    Returns:
        An RGB image; the heat map is interpolated between the centres of the token cells.

    Raises:
        LitEveError: the heat map has other axes, or numbers that are negative or not finite.
    """
    from matplotlib import colormaps

    image = load_image(image).convert("L")
    if size is not None:
        scale = size / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.NEAREST)
    values = heat.detach().float().cpu()
    if values.ndim != 2:
        raise LitEveError(f"overlay: the heat map is (H, W), but this one has the shape {tuple(values.shape)}")
    if not (values.isfinite() & (values >= 0)).all():
        raise LitEveError("overlay: the heat map has numbers that are negative or not finite")
    values = values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
    smooth = Image.fromarray(values.numpy()).resize(image.size, Image.Resampling.BILINEAR)
    colours = colormaps[colormap](np.asarray(smooth))[..., :3] * 255  # (y, x, 3)
    blended = (1 - opacity) * np.asarray(image)[..., None] + opacity * colours
    return Image.fromarray(blended.round().astype(np.uint8))


def picture_below(images: Sequence[ImageSource], image: int, maps: Mapping[str, Sequence[object]]) -> tuple[Image.Image, int]:
    """The image that a figure lays maps over, and its number from 0.

    Args:
        images: what the model saw.
        image: which of them, negative ones from the end.
        maps: by whose they are, one for each of the images.

    Raises:
        LitEveError: there is no such image, or not one map for each.
    """
    check_images("figure", images)
    for whose, ones in maps.items():
        if len(ones) != len(images):
            raise LitEveError(f"{whose} has maps over {len(ones)} images, but {len(images)} are given")
    (image,) = indices([image], len(images), "image")
    return load_image(images[image]), image
