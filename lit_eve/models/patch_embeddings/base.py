"""What every patch embedding has, and what it must return.

Notation: P patches of p x p pixels, Q = P / pool^2 tokens, N images, E width of the patch embedding.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from lit_eve.errors import ConfigError, check_sizes
from lit_eve.models.patch_embeddings.places import places_of_tokens
from lit_eve.processing.geometries import ImageGeometry
from lit_eve.registry import Registry


class ImageTokens(NamedTuple):
    """What a patch embedding returns, before the projector."""

    tokens: Tensor  # (Q, E), row-major within each image
    classes: Tensor | None  # (N, E); None if the geometry has no class token
    split: Tensor | None  # (E,); None if the geometry has no split token


class PatchEmbedding(nn.Module):
    """What every patch embedding has: its width, and a learned class and split token where the geometry asks for them.

    A variant has :meth:`embed`, which makes a token of each window, or a :meth:`forward` of its own for all else. That one may
    leave out ``grid_hw``. What a variant must do besides is tried by :func:`lit_eve.testing.check_patch_embedding`.

    Args:
        geometry: sizes of patches and pooling windows.
        width: E.
        **sizes: other sizes among the variant's arguments, to be checked.

    Raises:
        ConfigError: the width, or one of ``sizes``, is no whole number of at least 1.
    """

    def __init__(self, geometry: ImageGeometry, width: int, **sizes: int) -> None:
        super().__init__()
        check_sizes("patch_embedding", width=width, **sizes)
        self.width = width
        self.window = geometry.pool_size**2  # patches that become a token
        self.class_embedding = nn.Parameter(torch.empty(width)) if geometry.class_token else None
        self.split_embedding = nn.Parameter(torch.empty(width)) if geometry.split_token else None
        self.reset_parameters()

    def embed(self, windows: Tensor, places: Tensor) -> Tensor:
        """Tokens of all images, each from its own window.

        Args:
            windows: (Q, pool * pool * 3 * p * p) float, the normalised pixels of each token.
            places: (Q, 2) int64, row and column of each token in its image.

        Returns:
            (Q, E)
        """
        raise ConfigError(f"{type(self).__name__} has neither `embed` nor `forward`: one of them must make tokens of patches")

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int, grid_hw: Tensor) -> ImageTokens:
        """:meth:`embed`, and the learned class and split token beside it.

        Args:
            patches: (P, 3 * p * p) float, normalised, those of a window side by side.
            image_of_token: (Q,) int64.
            num_images: N.
            grid_hw: (N, 2) int64, rows and columns of each image's tokens, on the device.
        """
        windows = rearrange(patches, "(q w) d -> q (w d)", w=self.window)
        return self.with_embeddings(self.embed(windows, places_of_tokens(grid_hw, image_of_token)), num_images)

    def with_embeddings(self, tokens: Tensor, num_images: int) -> ImageTokens:
        """Tokens (Q, E) beside the class token, the same for all images, and the split token, where the geometry has them."""
        classes = None if self.class_embedding is None else self.class_embedding.expand(num_images, -1)  # (N, E)
        return ImageTokens(tokens, classes, self.split_embedding)

    def reset_parameters(self) -> None:
        """Standard normal class and split embeddings, as upstream."""
        for embedding in (self.class_embedding, self.split_embedding):
            if embedding is not None:
                nn.init.normal_(embedding)


def takes_grid(patch_embedding: nn.Module) -> bool:
    """Whether a patch embedding asks for ``grid_hw``."""
    return "grid_hw" in inspect.signature(patch_embedding.forward).parameters


def check_image_tokens(
    found: Any, name: str, width: int, num_tokens: int, num_images: int, geometry: ImageGeometry
) -> ImageTokens:
    """What a patch embedding returned, if its shapes are those that it must have; shapes are known without the device.

    Raises:
        ConfigError: a part is missing, is there although the geometry has none, or has another shape.
    """
    if not isinstance(found, tuple) or len(found) != len(ImageTokens._fields):
        raise ConfigError(
            f"patch embedding {name!r} must return ImageTokens(tokens, classes, split), not {type(found).__name__}"
        )
    shapes = {
        "tokens": (num_tokens, width),
        "classes": (num_images, width) if geometry.class_token else None,
        "split": (width,) if geometry.split_token else None,
    }
    for (part, expected), tensor in zip(shapes.items(), found, strict=True):
        shape = None if tensor is None else tuple(tensor.shape)
        if shape != expected:
            raise ConfigError(
                f"patch embedding {name!r} returned {part} of shape {shape}; for {num_images} images, {num_tokens} tokens, "
                f"width {width} and this geometry it must be {expected}"
            )
    return ImageTokens(*found)


PATCH_EMBEDDINGS: Registry[PatchEmbedding] = Registry("patch embedding")
"""A variant is built with the context ``geometry`` and ``hidden_size``, the width of the decoder."""
