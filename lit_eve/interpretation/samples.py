"""The images that are looked at; many samples, one after another, each made into what a model is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.progress import track
from torch import nn

from lit_eve.errors import LitEveError, SampleError
from lit_eve.processing import Sample
from lit_eve.processing.sources import ImageSource

T = TypeVar("T")


def check_images(caller: str, images: Sequence[ImageSource]) -> None:
    """Raise LitEveError where there is no image, or one in place of a list: a path would be read letter by letter."""
    if isinstance(images, (str, bytes, bytearray)) or not isinstance(images, Sequence):
        raise LitEveError(f"{caller}: images is a list of images, not a {type(images).__name__}: put one image into a list")
    if not images:
        raise LitEveError(f"{caller}: there is no image to look at")


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
