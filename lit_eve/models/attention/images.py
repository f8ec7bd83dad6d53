"""Which tokens see which: kinds of image attention by name, and the masks that follow from them.

A token sees all before it in its sample, itself, and all tokens of its own image; class and split tokens belong to their image.
A kind of image attention says what of this remains:

    causal          what is before the token, and itself: images are read like text (the default)
    bidirectional   everything

One sample of a word, an image of two tokens, another one that touches it, and a word (rows are queries)::

              causal          bidirectional
    word      1 . . . . .     1 . . . . .
    image 0   1 1 . . . .     1 1 1 . . .
    image 0   1 1 1 . . .     1 1 1 . . .
    image 1   1 1 1 1 . .     1 1 1 1 1 .
    image 1   1 1 1 1 1 .     1 1 1 1 1 .
    word      1 1 1 1 1 1     1 1 1 1 1 1

A token that follows an image may thus be read without that image being read again: prompts can be cut between images, and the
steps of a generation are causal. A sliding window of a decoder's layers limits what is before a token; its own image is
seen whole, as in Gemma 3.

Notation: B rows, T tokens per row, S samples, N images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lit_eve.models.splice import starts_of_samples
from lit_eve.registry import Registry


class Tokens(NamedTuple):
    """What a kind of image attention is told of tokens; all tensors broadcast against each other."""

    image: Tensor
    """int64, the number of the token's image in its sample, from 0; -1: text."""
    place: Tensor
    """int64, its place in its sample, from 0."""


class ImageAttention:
    """A kind of image attention: by default, tokens of an image see each other in both directions.

    A subclass that hides more defines :meth:`sees`. It has no parameters and keeps no tensors.
    """

    is_causal = False
    """Whether nothing but what is before a token, and all of it, is seen: no mask of its own is needed."""

    def sees(self, query: Tokens, key: Tokens) -> Tensor | bool:
        """Whether a token sees another one that it may see: one before it, or one of its own image.

        Args:
            query: the token that looks, or many of them.
            key: what it looks at.

        Returns:
            bool, of the shape that ``query`` and ``key`` broadcast to, made by elementwise operations. A token always sees
            itself.
        """
        return True

    @property
    def hides(self) -> bool:
        """Whether anything is hidden of what may be seen."""
        return type(self).sees is not ImageAttention.sees


IMAGE_ATTENTIONS: Registry[ImageAttention] = Registry("image attention")
IMAGE_ATTENTIONS.register("bidirectional")(ImageAttention)


@IMAGE_ATTENTIONS.register("causal")
class CausalImages(ImageAttention):
    """Images are read like text."""

    is_causal = True

    def sees(self, query: Tokens, key: Tokens) -> Tensor:
        """What is not behind."""
        return key.place <= query.place


def number_images(is_image: Tensor, slots: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """The number that each token's image has in its sample, from 0; -1 at text. Nothing waits for the device.

    Args:
        is_image: (B, T) bool, the image slots.
        slots: (N,) int64, how many each image has, in their order.
        cu_seqlens: (S + 1,) boundaries of samples over the flattened tokens; default: a row is a sample.

    Returns:
        (B, T) int64
    """
    flat = is_image.flatten()
    seen = flat.cumsum(0)  # slots up to each token, its own with them
    ends = slots.cumsum(0)  # (N,)
    image = torch.searchsorted(ends, seen - 1, right=True)  # (B * T,)
    start = starts_of_samples(is_image, cu_seqlens)
    before = torch.searchsorted(ends, (seen - flat.long())[start], right=True)  # images in front of the sample
    return torch.where(flat & (image < len(slots)), image - before, -1).view_as(is_image)


def name_of(kind: ImageAttention) -> str:
    """The name under which a kind is registered."""
    return next((name for name in IMAGE_ATTENTIONS if IMAGE_ATTENTIONS[name] is type(kind)), type(kind).__name__)
