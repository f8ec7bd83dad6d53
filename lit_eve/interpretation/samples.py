"""Many samples, one after another, each made into what a model is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.progress import track

from lit_eve.errors import SampleError
from lit_eve.processing import Sample

T = TypeVar("T")


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
