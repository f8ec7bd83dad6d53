"""Masked patches: Tuna-2's way to learn from images that are seen in part.

Notation: Q image tokens, K tokens that are masked at most, D decoder width, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_eve.errors import ConfigError
from lit_eve.losses.masked_patches import MaskedPatchHead, MaskRatio, choose_tokens
from lit_eve.losses.windows import window_loss
from lit_eve.models.supervision.base import SUPERVISIONS, ImageBatch, Supervision
from lit_eve.processing.geometries import ImageGeometry


@SUPERVISIONS.register("masked_patches")
class MaskedPatches(Supervision):
    """A learned token replaces some tokens of an image, and hidden states there predict their pixels.

    Source: Tuna-2 (arXiv 2604.24763), section 2.2, and its code (github.com/facebookresearch/tuna-2, ``Tuna2Pixel`` in
    tuna/models/tuna_2_pixel.py). From there: a random subset of each image's tokens becomes one learned token before the
    decoder, drawn with a deviation of D ** -0.5; the text is predicted as always. The section gives no number; the code draws
    a share between -0.7 and 0.3 for each image (less than 0: nothing is masked). The paper masks in pretraining.

    There, images that are read are trained by the text alone (``predict: false``); pixels are predicted, of all patches, for
    images that are generated, which lit_eve does not do. Predicting the masked pixels of images that are read, normalised as in
    MAE (arXiv 2111.06377), from any hidden state, and the default of ``ratio``, are lit_eve's choices.

    Where images are read like text, a token knows what stands before it: a masked one is predicted from these and from its
    place. Where the tokens of an image see each other, it is predicted from the whole image around it. What a patch embedding
    has mixed into other tokens (EVE v1's class token, convolutions, vision towers) is not hidden.

    Args:
        ratio: share of an image's tokens that is masked, rounded down; two numbers: drawn between them for each image.
        tap: hidden state that predicts, 1 to L; default: L.
        predict: False masks without a loss of its own, as Tuna-2 does for images that are read.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        geometry: ImageGeometry,
        ratio: float | Sequence[float] = 0.3,
        tap: int | None = None,
        predict: bool = True,
    ) -> None:
        self.ratio = MaskRatio(*ratio) if isinstance(ratio, Sequence) else MaskRatio(ratio, ratio)
        self.head = MaskedPatchHead(hidden_size, geometry.window_dim if predict else None)
        self.taps = (num_layers if tap is None else tap,) if predict else ()

    @classmethod
    def check_arguments(cls, ratio: Any = 0.3, tap: Any = None, predict: Any = True) -> None:
        """Is there something to mask and something to see, and a hidden state that knows it?"""
        ends = ratio if isinstance(ratio, list | tuple) else (ratio, ratio)
        numbers = len(ends) == 2 and all(isinstance(x, int | float) and not isinstance(x, bool) for x in ends)
        if not (numbers and -1 <= ends[0] <= ends[1] and 0 < ends[1] < 1):
            raise ConfigError(
                "masked_patches: ratio must be a number between 0 and 1, or two between -1 and 1, the larger one last and "
                f"above 0, got {ratio!r}"
            )
        if tap is not None and (isinstance(tap, bool) or not isinstance(tap, int) or tap < 1):
            raise ConfigError(f"masked_patches: tap must be a hidden state from 1 on (0 is the mask token itself), got {tap!r}")
        if not isinstance(predict, bool):
            raise ConfigError(f"masked_patches: predict must be true or false, got {predict!r}")

    def change_tokens(self, images: ImageBatch, tokens: Tensor) -> Tensor:
        """The mask token in the place of those that are masked."""
        return torch.where(self._masked(images)[:, None], self.head.mask_token.to(tokens.dtype), tokens)

    def positions(self, images: ImageBatch) -> Tensor:
        """(K,): the masked tokens; then others, as only the device knows how many are masked."""
        return images.layout.token_position[self._chosen(images)[0]]

    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Mean squared error against the normalised pixels of the masked tokens."""
        if self.head.pixels is None:
            return self.head.mask_token[:0].float().sum()  # 0, in which the head has a part
        chosen, is_masked = self._chosen(images)
        image = images.layout.image_of_token[chosen]  # (K,)
        return window_loss(self.head.pixels(hidden[0]), images.windows[chosen], is_masked, image, images.num_images)

    def _masked(self, images: ImageBatch) -> Tensor:
        """(Q,) bool."""

        def draw() -> Tensor:
            numbers = self.ratio.numbers(images.tokens_of_image, images.random_of_images)
            return choose_tokens(images.random_of_tokens, images.layout.image_of_token, images.offset_of_token, numbers)

        return images.once((self, "masked"), draw)

    def _chosen(self, images: ImageBatch) -> tuple[Tensor, Tensor]:
        """(K,) int64, masked tokens and then others; (K,) bool, which are masked."""
        is_masked = self._masked(images)

        def choose() -> tuple[Tensor, Tensor]:
            chosen = is_masked.byte().argsort(descending=True, stable=True)[: self.ratio.at_most(len(is_masked))]
            return chosen, is_masked[chosen]

        return images.once((self, "chosen"), choose)
