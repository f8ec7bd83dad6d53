"""The images that are looked at; many samples, one after another, each made into what a model is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from PIL import Image
from rich.progress import track
from torch import nn

from lit_eve.errors import LitEveError, SampleError
from lit_eve.processing import ImageGeometry, Sample
from lit_eve.processing.sources import ImageSource

T = TypeVar("T")


def check_images(caller: str, images: Sequence[ImageSource]) -> None:
    """Raise LitEveError where there is no image, or one in place of a list: a path would be read letter by letter."""
    if isinstance(images, (str, bytes, bytearray)) or not isinstance(images, Sequence):
        raise LitEveError(f"{caller}: images is a list of images, not a {type(images).__name__}: put one image into a list")
    if not images:
        raise LitEveError(f"{caller}: there is no image to look at")


def check_whole(geometry: ImageGeometry, images: Sequence[Image.Image]) -> None:
    """Raise LitEveError where a model does not see a photo as it is: maps lie on what it sees, not on the photo."""
    for number, image in enumerate(images, 1):
        if not geometry.shows_whole(image, len(images)):
            name, views = geometry.to_dict()["name"], len(geometry.view_sizes(*image.size, len(images)))
            seen = "padded or cropped: look at geometry.frame(photo)" if views == 1 else f"in {views} views"
            raise LitEveError(f"there is no map over image {number}: the geometry {name!r} shows it {seen}")


def check_eval(model: nn.Module) -> None:
    """Raise LitEveError unless the model is in eval mode."""
    if model.training:
        raise LitEveError("the model is in training mode, where dropout may change every answer: call model.eval() first")


def each_usable(
    samples: Sequence[Sample], encode: Callable[[Sample], T], skipped: list[str], progress: str | None
) -> Iterator[T]:
    """``encode`` of each sample; why one cannot be used is put into ``skipped``, beginning with its key.

    Args:
        progress: title of the progress bar; None: no bar.
    """
    for index in track(range(len(samples)), progress or "", disable=progress is None):
        try:
            encoded = encode(samples[index])
        except SampleError as error:
            skipped.append(str(error))
            continue
        yield encoded
