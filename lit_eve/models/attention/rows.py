"""Where the samples of packed rows begin and end, and what a query of theirs may see.

Notation: B rows, T tokens per row, S samples, R query positions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_eve.models.attention.masks import ImageMask


class Segment(NamedTuple):
    """Tokens of one sample that are no image, or one image: places in the flattened B * T tokens."""

    sample: int  # where the sample begins
    start: int
    stop: int
    is_image: bool


@dataclass(frozen=True)
class PackedRows:
    """Where samples begin and end; made once per forward pass, read by the attention of every layer."""

    cu_seqlens: Tensor  # (S + 1,) int32, boundaries over the flattened B * T tokens; no sample crosses a row
    max_seqlen: int  # no sample is longer
    rows: int  # B
    length: int  # T
    kernel: str  # "flash_attn", "varlen", "samples" or "mask": the best that name and device allow
    autocast: torch.dtype | None = None  # what autocast computes in, where it is on
    images: ImageMask | None = None  # None: images are read like text
    _masks: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def sample_lengths(self) -> list[int]:
        """Tokens of each sample. Only for the CPU: anywhere else this waits for the device."""
        return self.cu_seqlens.diff().tolist()

    @cached_property
    def sample_of_token(self) -> Tensor:
        """(B, T) int64, a number that the tokens of a sample share."""
        places = torch.arange(self.rows * self.length, dtype=self.cu_seqlens.dtype, device=self.cu_seqlens.device)
        return torch.searchsorted(self.cu_seqlens, places, right=True).view(self.rows, self.length)

    @cached_property
    def segments(self) -> list[Segment] | None:
        """Texts and images of all samples, in their order; None if an image is interrupted. Only for the CPU."""
        sample, image = self.images.sample.flatten(), self.images.image.flatten()
        is_start = torch.ones_like(sample, dtype=torch.bool)
        is_start[1:] = (sample.diff() != 0) | (image.diff() != 0)
        starts = is_start.nonzero().flatten()
        pieces = torch.stack([sample[starts], image[starts]], 1)
        pieces = pieces[pieces[:, 1] >= 0]
        if len(pieces.unique(dim=0)) < len(pieces):
            return None
        first = self.cu_seqlens.long()[torch.searchsorted(self.cu_seqlens, starts.int(), right=True) - 1]
        places = [*starts.tolist(), len(sample)]
        return [
            Segment(*of_one)
            for of_one in zip(first.tolist(), places[:-1], places[1:], (image[starts] >= 0).tolist(), strict=True)
        ]

    def visible(self, rows: Tensor | None = None, window: int | None = None) -> Tensor:
        """True where queries may look: back, within their own sample, at most at ``window`` tokens with their own.

        With samples of 2 and 3 tokens in a row of 5::

            1 . . . .
            1 1 . . .
            . . 1 . .
            . . 1 1 .
            . . 1 1 1

        What images see beyond that stands in ``lit_eve/models/attention/images.py``.

        Args:
            rows: (R,) places of the queries; None: all, T.
            window: tokens.

        Returns:
            (B, 1, R, T) bool
        """
        if rows is None:
            rows = torch.arange(self.length, device=self.cu_seqlens.device)
        if self.images is not None:
            return self.images.seen(lambda x: x[:, rows, None], lambda x: x[:, None], window)[:, None]
        sample = self.sample_of_token
        distance = rows[:, None] - torch.arange(self.length, device=rows.device)  # (R, T)
        back = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return (back & (sample[:, rows, None] == sample[:, None]))[:, None]

    def mask(self, window: int | None = None) -> Tensor:
        """(B, 1, T, T) bool: what all queries see; the same tensor for every layer that asks."""
        if window not in self._masks:
            self._masks[window] = self.visible(window=window)
        return self._masks[window]

    def mask_of(self, start: int, stop: int, window: int | None = None) -> Tensor:
        """(n, n) bool: what the queries of one sample, which stands there in the flattened tokens, see of it."""
        if (start, stop, window) not in self._masks:
            query, key = (lambda x: x.flatten()[start:stop, None]), (lambda x: x.flatten()[start:stop])
            self._masks[start, stop, window] = self.images.seen(query, key, window)
        return self._masks[start, stop, window]

    def mask_of_text(self, queries: int, keys: int) -> Tensor:
        """(queries, keys) bool: what the last tokens of a sample see of all tokens up to the last."""
        if (queries, keys) not in self._masks:
            ones = torch.ones(queries, keys, dtype=torch.bool, device=self.cu_seqlens.device)
            self._masks[queries, keys] = ones.tril(keys - queries)
        return self._masks[queries, keys]


def band(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length) bool: back, and at most at ``window`` tokens with the query's own."""
    band = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return band if window is None else band.triu(1 - window)
