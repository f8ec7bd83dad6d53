"""What the decoder reads: images become tokens in their slots, and each token learns where it stands and what it may see.

Notation: B rows, T tokens per row, K tokens with those in the KV cache, D width, N images, P patches, p side of a patch,
Q = P / pool^2 image tokens without class and split, n image slots, S samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.models.attention import ImageAttention, ImageMask, mask_of_batch, number_images
from lit_eve.models.decoders import DecoderKind, ImageSlots, embed_tokens, packed_inputs
from lit_eve.models.patch_embeddings import ImageTokens, PatchEmbedding, check_image_tokens, takes_grid
from lit_eve.models.positions import Positions, known_positions
from lit_eve.models.splice import ImageLayout, check, splice
from lit_eve.models.supervised import SupervisedModel
from lit_eve.models.supervision import Supervisor


@dataclass(frozen=True)
class TokenBatch:
    """What the decoder is about to read, as the model's forward gets it."""

    inputs_embeds: Tensor  # (B, T, D), images in their slots
    input_ids: Tensor | None  # (B, T) int64; None where inputs_embeds were given
    image_grid_hw: Tensor | None  # (N, 2) int64
    attention_mask: Tensor | None  # (B, T), 0 at padding
    position_ids: Tensor | None  # (B, T) int64
    cu_seqlens: Tensor | None  # (S + 1,) int32, boundaries of packed samples
    past_key_values: Cache | None

    @property
    def past(self) -> int:
        """Tokens in the KV cache, K - T."""
        return 0 if self.past_key_values is None else int(self.past_key_values.get_seq_length())


class ReadingModel(SupervisedModel):
    """A model of which the constructor of a subclass makes the parts."""

    patch_embedding: PatchEmbedding
    projector: nn.Module
    decoder_kind: DecoderKind
    image_attention: ImageAttention
    positions: Positions

    def embed_images(
        self, pixel_values: Tensor, image_of_token: Tensor, num_images: int, grid_hw: Tensor | None = None
    ) -> ImageTokens:
        """Patches to tokens of the decoder's width.

        Args:
            pixel_values: (P, 3 * p * p) uint8, or float if normalised already.
            image_of_token: (Q,) int64.
            num_images: N.
            grid_hw: (N, 2) int64, rows and columns of each image's tokens, for patch embeddings that look at neighbours.

        Returns:
            tokens (Q, D), classes (N, D) or None, split (D,) or None.

        Raises:
            ConfigError: patch embedding or projector return something of another shape.
        """
        patches = self._normalized(pixel_values, self.dtype)
        grid = {"grid_hw": grid_hw} if takes_grid(self.patch_embedding) else {}
        tokens, classes, split = check_image_tokens(
            self.patch_embedding(patches, image_of_token, num_images, **grid),
            self.config.patch_embedding["name"],
            self.patch_embedding.width,
            len(image_of_token),
            num_images,
            self.geometry,
        )
        parts = [part for part in (tokens, classes, split[None] if split is not None else None) if part is not None]
        rows, size = sum(map(len, parts)), self.config.text_config.hidden_size
        embeds = self.projector(torch.cat(parts))  # (Q + N + 1, D)
        if embeds.shape != (rows, size):
            raise ConfigError(
                f"projector {self.config.projector['name']!r} returned the shape {tuple(embeds.shape)} for {rows} tokens, "
                f"but the decoder needs {(rows, size)}"
            )
        projected = iter(embeds.split([len(part) for part in parts]))
        return ImageTokens(
            next(projected),
            next(projected) if classes is not None else None,
            next(projected)[0] if split is not None else None,
        )

    def embed_inputs(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, image_grid_hw: Tensor | None = None
    ) -> Tensor:
        """What the decoder reads for tokens and images: (B, T, D), for ``inputs_embeds`` of forward and of ``generate``.

        Decoders with weights of their own for images need ``image_mask=input_ids == model.config.image_token_id`` beside it.

        Args: as in :meth:`forward`.
        """
        layout = self._layout(input_ids, pixel_values, image_grid_hw)
        return self._embed(input_ids, pixel_values, image_grid_hw, layout)

    def number_images(self, input_ids: Tensor, image_grid_hw: Tensor | None, cu_seqlens: Tensor | None = None) -> Tensor:
        """The number that each token's image has in its row or sample, from 0; -1 at text: (B, T) int64.

        Args: as in :meth:`forward`, which needs this beside ``inputs_embeds`` where images are not read like text.
        """
        grid = input_ids.new_empty(0, 2) if image_grid_hw is None else image_grid_hw
        is_image = input_ids == self.config.image_token_id
        return number_images(is_image, self.geometry.num_tokens_of_grid(grid), cu_seqlens)

    def position_tokens(
        self,
        input_ids: Tensor,
        image_grid_hw: Tensor | None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor | None:
        """Where each token stands in its row or sample: (B, T, 4) int64, see :meth:`Positions.place`; None if they are counted.

        Args: as in :meth:`forward`, which needs this beside ``inputs_embeds``.
        """
        if self.positions.is_sequential:
            return None
        grid = input_ids.new_empty(0, 2) if image_grid_hw is None else image_grid_hw
        is_image = input_ids == self.config.image_token_id
        return self.positions.place(is_image, self.geometry.token_grid_of(grid), self.geometry, attention_mask, cu_seqlens)

    def _layout(self, input_ids: Tensor, pixel_values: Tensor | None, image_grid_hw: Tensor | None) -> ImageLayout | None:
        """Where the images stand; None if none came along."""
        if pixel_values is None:
            no_slot = (input_ids != self.config.image_token_id).all()
            check(no_slot, "input_ids hold image slots, but no images (pixel_values, image_grid_hw) came with them")
            return None
        if image_grid_hw is None:
            raise LitEveError("pixel_values need image_grid_hw")
        return ImageLayout.of(input_ids, image_grid_hw, len(pixel_values), self.geometry, self.config.image_token_id)

    def _embed(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None,
        image_grid_hw: Tensor | None,
        layout: ImageLayout | None,
        supervisor: Supervisor | None = None,
    ) -> Tensor:
        if layout is None:
            return self._embed_text(input_ids)
        grid = self.geometry.token_grid_of(image_grid_hw)
        images = self.embed_images(pixel_values, layout.image_of_token, len(image_grid_hw), grid)
        if supervisor is not None:
            images = images._replace(tokens=supervisor.change_tokens(images.tokens))
        return splice(self._embed_text(input_ids), layout, *images)

    def _embed_text(self, input_ids: Tensor) -> Tensor:
        # Image slots may carry an id outside the vocabulary; their rows are overwritten.
        return embed_tokens(self.language_model, input_ids.masked_fill(input_ids == self.config.image_token_id, 0))

    # ---- what goes with the embeddings into the decoder

    def _mask_of_images(self, batch: TokenBatch, numbers: Tensor | None) -> ImageMask | None:
        """What tokens may see; None where images are read like text. ``numbers`` (B, K) as in :meth:`number_images`."""
        kind = self.image_attention
        has_images = batch.image_grid_hw is not None and len(batch.image_grid_hw) > 0
        if kind.is_causal or not (has_images or kind.hides or batch.input_ids is None):
            return None
        new = None
        if batch.input_ids is not None:
            new = self.number_images(batch.input_ids, batch.image_grid_hw, batch.cu_seqlens)  # (B, T)
        tell = (batch.attention_mask, batch.position_ids, batch.cu_seqlens, batch.past_key_values)
        return mask_of_batch(kind, batch.inputs_embeds, new, numbers, *tell)

    def _slots_of_images(
        self,
        batch: TokenBatch,
        layout: ImageLayout | None,
        image_mask: Tensor | None,
        numbers: Tensor | None,
        positions: Tensor | None,
    ) -> dict[str, Any]:
        """Where images stand, for kinds of decoders with weights for them: an argument of the decoder, or none.

        Args:
            layout: of ``input_ids`` with images.
            image_mask: (B, T) bool beside ``inputs_embeds``.
            numbers: (B, K) int64, which tell it too.
            positions: (n,) int64 if they are known.
        """
        if not self.decoder_kind.needs_image_slots:
            return {}
        if batch.input_ids is not None:
            image_mask = None if layout is None else layout.is_image
        elif image_mask is None and numbers is not None:
            image_mask = numbers[:, -batch.inputs_embeds.shape[1] :] >= 0
        elif image_mask is None:
            raise LitEveError(
                "inputs_embeds do not tell which of them are images', and this decoder must know: give image_mask"
            )
        return {"image_slots": ImageSlots.of(batch.inputs_embeds, image_mask, positions)}

    def _places_of_tokens(self, batch: TokenBatch, given: Tensor | None) -> dict[str, Any]:
        """Arguments of the decoder for positions that are not counted; ``given`` (B, T or K, 4) if they are known."""
        if self.positions.is_sequential:
            if given is not None:
                raise LitEveError("token_positions: this model counts its tokens (positions 'sequential'); leave them out")
            return {}
        past, found = batch.past, None
        if given is None and batch.input_ids is not None and not past:
            found = self.position_tokens(batch.input_ids, batch.image_grid_hw, batch.attention_mask, batch.cu_seqlens)
        name, length = self.config.positions["name"], batch.inputs_embeds.shape[1]
        places = known_positions(name, length, given, found, past)
        return self.positions.arguments(self.get_decoder(), batch.inputs_embeds, places)

    def _laid_out(
        self, batch: TokenBatch, images: ImageMask | None, max_seqlen: int | None
    ) -> tuple[dict[str, Any], Callable[[Tensor], Tensor]]:
        """Embeddings, mask and positions for the decoder, and what makes rows (B, T, ...) of its hidden states."""
        decoder = self.get_decoder()
        if batch.cu_seqlens is not None:
            if batch.past_key_values is not None or batch.attention_mask is not None:
                raise LitEveError("packed rows (cu_seqlens) have neither an attention_mask nor a KV cache")
            return packed_inputs(decoder, batch.inputs_embeds, batch.position_ids, batch.cu_seqlens, max_seqlen, images)
        mask = batch.attention_mask
        if images is not None:
            mask = images.for_decoder(decoder.config, batch.inputs_embeds, mask, batch.past_key_values)
        inputs = {"inputs_embeds": batch.inputs_embeds, "attention_mask": mask, "position_ids": batch.position_ids}
        return inputs, lambda hidden: hidden
