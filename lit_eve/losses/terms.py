"""What a loss is made of, by name: each part knows what it is averaged over and how much it counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Count = Literal["tokens", "images"]


class Term(NamedTuple):
    """One part of the loss, of one batch.

    It is a sum, no mean: means of micro-batches and ranks cannot be added up to the mean of the global batch, sums can.
    """

    total: Tensor
    """0-dim, summed over the batch."""
    per: Count
    """What it is averaged over, in the global batch: supervised tokens ("tokens") or images."""
    weight: float = 1.0
    """Its factor in the loss; 0: it is logged and not trained on."""


def weighted_sum(terms: Mapping[str, Term], counts: Mapping[Count, Tensor | int]) -> Tensor:
    """The loss: each term divided by its count, times its weight; 0-dim.

    Args:
        terms: of one batch; at least one has a weight.
        counts: supervised tokens and images of the global batch. A count of 0 counts as 1, as its term is 0.
    """
    parts = [term.weight * mean_of(term, counts) for term in terms.values() if term.weight]
    return sum(parts[1:], parts[0])


def mean_of(term: Term, counts: Mapping[Count, Tensor | int]) -> Tensor:
    """A term without its weight, divided by its count as in :func:`weighted_sum`; 0-dim."""
    return term.total / _at_least_one(counts[term.per])


def sum_of_image_means(values: Tensor, image: Tensor, num_images: int, counts: Tensor | None = None) -> Tensor:
    """The mean of the values of each image, summed over the images, in float32: 0-dim.

    Divide it by the number of images of the whole (global) batch. An image of which no value counts adds 0.

    Args:
        values: (M,).
        image: (M,) int64, the image that a value belongs to.
        num_images: N images of this batch.
        counts: (M,) bool, the values that are looked at; default: all.
    """
    values = values.float()
    counts = torch.ones_like(values) if counts is None else counts.float()
    number = values.new_zeros(num_images).index_add_(0, image, counts).clamp(min=1)  # (N,)
    return (values * counts / number[image]).sum()


def _at_least_one(count: Tensor | int) -> Tensor | int:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
