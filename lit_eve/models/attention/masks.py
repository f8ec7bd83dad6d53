"""The masks of a batch in which images are not read like text, for transformers' attentions and for lit_eve's own.

Notation: B rows, T tokens per row, K tokens with those in the KV cache, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import create_masks_for_generate

from lit_eve.errors import LitEveError
from lit_eve.models.attention.images import ImageAttention, Tokens, name_of
from lit_eve.models.attention.kernels import PACKED, PACKED_SDPA
from lit_eve.models.splice import check

_TAKE_MASKS = (PACKED, PACKED_SDPA, "sdpa", "eager", "flex_attention")
Choose = Callable[[Tensor], Tensor]
"""Takes tokens out of (B, K), in a shape that broadcasts against others."""


@dataclass(frozen=True)
class ImageMask:
    """What the tokens of a batch may see, those in the KV cache with them."""

    kind: ImageAttention
    image: Tensor  # (B, K) int64, the number of each token's image in its sample, -1: text
    place: Tensor  # (B, K) int64, its place in its sample
    sample: Tensor  # (B, K) int64, a number that the tokens of a sample share

    @classmethod
    def of_rows(cls, kind: ImageAttention, image: Tensor, attention_mask: Tensor | None = None) -> ImageMask:
        """Of rows that are samples; ``attention_mask`` (B, K) is 0 at padding, which stays invisible by other means."""
        real = torch.ones_like(image) if attention_mask is None else attention_mask.long()
        return cls(kind, image, (real.cumsum(1) - 1).clamp(min=0), torch.zeros_like(image))

    @classmethod
    def of_packed(cls, kind: ImageAttention, image: Tensor, cu_seqlens: Tensor) -> ImageMask:
        """Of packed rows, with the boundaries (S + 1,) of their samples over the flattened tokens."""
        token = torch.arange(image.numel(), device=image.device)
        sample = torch.searchsorted(cu_seqlens.long(), token, right=True)  # from 1
        place = token - cu_seqlens.long()[sample - 1]
        return cls(kind, image, place.view_as(image), sample.view_as(image))

    def seen(self, query: Choose, key: Choose, window: int | None = None) -> Tensor:
        """Whether tokens see others: bool, of the shape that what the two functions choose of (B, K) broadcasts to.

        Args:
            query, key: choose the tokens that look, and those that are looked at.
            window: how many tokens of those not behind it a token sees, itself with them; its image is seen whole.
        """
        distance = query(self.place) - key(self.place)
        visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
        visible = (visible | self._share_image(query, key)) & (query(self.sample) == key(self.sample))
        return visible & self._left(query, key) if self.kind.hides else visible

    def _share_image(self, query: Choose, key: Choose) -> Tensor:
        image = query(self.image)
        return (image >= 0) & (image == key(self.image)) & (query(self.sample) == key(self.sample))

    def _left(self, query: Choose, key: Choose) -> Tensor:
        """What the kind does not hide."""
        tokens = (Tokens(choose(self.image), choose(self.place)) for choose in (query, key))
        return self.kind.sees(*tokens) | (query(self.place) == key(self.place))

    def for_decoder(
        self,
        config: PreTrainedConfig,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Any:
        """What to give to a decoder as its ``attention_mask``: the masks of transformers, with images in them.

        Args:
            config: the decoder's.
            inputs_embeds, attention_mask, past_key_values: what the decoder gets.

        Returns:
            A mask in the form that the decoder's attention takes, or one for each type of its layers.

        Raises:
            LitEveError: its attention takes no such mask.
        """
        check_takes_masks(config._attn_implementation, self.kind)
        # A static cache has places for tokens that are still to come: they stand behind all others.
        spare = ImageMask(self.kind, *(F.pad(x, (0, 1), value=-1) for x in (self.image, self.place, self.sample)))
        last = self.image.shape[1]

        def at(batch: Tensor, place: Tensor) -> Choose:
            return lambda x: x[batch, place.clamp(max=last)]

        def share_image(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return spare._share_image(at(batch, query), at(batch, key))

        def left(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            chosen = at(batch, query), at(batch, key)
            same = chosen[0](spare.sample) == chosen[1](spare.sample)
            return same & spare._left(*chosen) if self.kind.hides else same

        return create_masks_for_generate(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=None,  # where these restart, transformers would count tokens anew
            or_mask_function=share_image,
            and_mask_function=left,
        )


def mask_of_batch(
    kind: ImageAttention,
    inputs_embeds: Tensor,
    new: Tensor | None,
    numbers: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cu_seqlens: Tensor | None,
    past_key_values: Cache | None,
) -> ImageMask:
    """What the tokens of a batch may see.

    Args:
        kind: of image attention.
        inputs_embeds: (B, T, D).
        new: (B, T) the numbers of the tokens' images (:func:`~lit_eve.models.attention.images.number_images`); None if unknown.
        numbers: (B, K) the same of all tokens, if the caller knows them.
        attention_mask, position_ids, cu_seqlens, past_key_values: as the model gets them.

    Raises:
        LitEveError: it cannot be known.
    """
    (rows, length), name = inputs_embeds.shape[:2], name_of(kind)
    past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
    if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2):
        raise LitEveError(f"image_attention {name!r} needs an attention_mask (B, T), which tells padding alone")
    if numbers is None and new is None:
        raise LitEveError(
            f"inputs_embeds do not tell which of them are an image's, and image_attention {name!r} must know: give "
            "image_numbers beside them (model.number_images)"
        )
    if numbers is None and past and kind.hides:
        raise LitEveError(
            f"image_attention {name!r} must know which tokens of the KV cache are an image's: call generate, or give "
            "image_numbers of all tokens (model.number_images)"
        )
    if numbers is None:
        numbers = F.pad(new, (past, 0), value=-1)  # images in the cache are whole, and end there
    if numbers.shape != (rows, past + length):
        raise LitEveError(f"image_numbers has the shape {tuple(numbers.shape)}, but there are {(rows, past + length)} tokens")
    if cu_seqlens is not None:
        return ImageMask.of_packed(kind, numbers, cu_seqlens)
    if attention_mask is None and position_ids is not None and position_ids.ndim == 2:
        check((position_ids.diff() >= 0).all(), "position_ids restart inside a row: packed rows need cu_seqlens")
    return ImageMask.of_rows(kind, numbers, attention_mask)


def check_takes_masks(implementation: str | None, kind: ImageAttention) -> None:
    """Raise LitEveError if an attention implementation of transformers cannot compute a kind of image attention."""
    if not kind.is_causal and implementation not in (None, *_TAKE_MASKS):
        raise LitEveError(
            f"attn_implementation {implementation!r} cannot let the tokens of an image see each other (image_attention "
            f"{name_of(kind)!r}); choose one of {', '.join(_TAKE_MASKS)}"
        )
