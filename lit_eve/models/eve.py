"""The encoder-free vision-language model: patches go through a thin embedding straight into a decoder-only language model.

Notation: B rows, T tokens per row, D width, V vocabulary, N images, P patches, C teacher image size, M supervised positions.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache
from transformers.utils import ModelOutput

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.losses import Term, mean_of, next_token_loss, target_positions_of, weighted_sum
from lit_eve.models.attention import IMAGE_ATTENTIONS, mask_of_batch, number_images
from lit_eve.models.checkpoints.skeletons import check_unsaved
from lit_eve.models.config import EveConfig
from lit_eve.models.decoders import (
    DECODER_KINDS,
    FamilyHead,
    ImageSlots,
    add_lora,
    blocks_of,
    check_image_attention,
    embed_tokens,
    packed_inputs,
    usual_attention,
)
from lit_eve.models.generation.mixin import ImageGenerationMixin
from lit_eve.models.own import note_imports
from lit_eve.models.patch_embeddings import PATCH_EMBEDDINGS, ImageTokens, check_image_tokens, takes_grid
from lit_eve.models.positions import POSITIONS, known_positions
from lit_eve.models.projector import PROJECTORS
from lit_eve.models.splice import ImageLayout, check, splice
from lit_eve.models.supervised import SupervisedModel
from lit_eve.models.supervision import Supervisor
from lit_eve.registry import Registry


@dataclass
class EveOutput(ModelOutput):
    """Output of :class:`EveForConditionalGeneration`; what was not asked for is None."""

    loss: Tensor | None = None  # 0-dim float32: language_loss and the weighted losses of the supervisions
    logits: Tensor | None = None  # (B, kept, V)
    language_loss: Tensor | None = None  # 0-dim float32
    alignment_loss: Tensor | None = None  # 0-dim float32, with patch alignment only; all losses are in terms
    num_correct: Tensor | None = None  # 0-dim int64: targets predicted right; with labels
    terms: dict[str, Term] | None = None  # what the loss is made of, as sums; a subclass adds its own; with labels
    past_key_values: Cache | None = None
    last_hidden_state: Tensor | None = None  # (B, T, D), behind the final norm
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None  # as the decoder ran: where samples lay side by side, one row each


class EveForConditionalGeneration(SupervisedModel, ImageGenerationMixin):
    """EVE (arXiv 2406.11832): patch embedding, projector and any causal language model of transformers, taken as it is.

    The heads of supervisions (the aligner, and others) and the frozen teacher exist in training only, after
    :meth:`attach_supervision`. Each head is saved beside the model in a file of its own (``aligner.safetensors``); the teacher
    is never saved.

    Args:
        config: the architecture.
    """

    def __init__(self, config: EveConfig) -> None:
        super().__init__(config)
        geometry = config.image_geometry
        note_imports(config, type(self))
        if config.text_config._attn_implementation in (None, "sdpa"):
            config.text_config._attn_implementation = usual_attention(config.text_config)
        dtype = config.text_config.dtype
        self.language_model = AutoModelForCausalLM.from_config(config.text_config, dtype=torch.get_default_dtype())
        config.text_config.dtype = dtype  # of no meaning inside a larger model
        width, hidden_size = self.get_input_embeddings().weight.shape[1], config.text_config.hidden_size
        if width != hidden_size:
            raise ConfigError(
                f"a decoder whose word embeddings have the width {width}, and its layers {hidden_size}, cannot be used: image "
                "tokens are made in the width of its layers"
            )
        self.decoder_kind = DECODER_KINDS.build(config.decoder_kind)
        self.decoder_kind.extend(self.language_model)
        self._head = FamilyHead(self.language_model, self.get_decoder())
        self.patch_embedding = self._part("patch_embedding", PATCH_EMBEDDINGS, geometry=geometry, hidden_size=hidden_size)
        sizes = {"input_size": self.patch_embedding.width, "output_size": hidden_size}
        self.projector = self._part("projector", PROJECTORS, **sizes)
        self.image_attention = IMAGE_ATTENTIONS.build(config.image_attention)
        if not self.image_attention.is_causal:
            check_image_attention(config.text_config, config.image_attention["name"])
        self.positions = POSITIONS.build(config.positions)
        self.positions.extend(self.language_model)
        if config.lora is not None:
            self._add_lora()
        self.geometry = geometry
        self.without_supervision()
        if config.image_token_id < config.text_config.vocab_size:  # it marks the place of an image: nothing to be written
            self.generation_config.suppress_tokens = [config.image_token_id]
        self.post_init()

    def _add_lora(self) -> None:
        kind, positions = self.config.decoder_kind["name"], self.config.positions["name"]
        for key, name, is_right in (
            ("decoder_kind", kind, kind == "dense"),
            ("positions", positions, not self.positions.adds_weights),
        ):
            if not is_right:
                raise ConfigError(f"lora beside {key} {name!r} is not proven to be right: leave one of them out")
        add_lora(self.language_model, self.config.lora)

    def _part(self, key: str, registry: Registry, **context: Any) -> Any:
        spec = getattr(self.config, key)
        build = lambda: registry.build(spec, **context)  # noqa: E731
        part = build()
        check_unsaved(part, build, f"{key} {spec['name']!r}")
        return part

    # ---- forward

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

    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        max_seqlen: int | None = None,
        pixel_values: Tensor | None = None,
        image_grid_hw: Tensor | None = None,
        teacher_pixel_values: Tensor | None = None,
        teacher_features: Tensor | None = None,
        image_seeds: Tensor | None = None,
        target_positions: Tensor | None = None,
        image_positions: Tensor | None = None,
        num_targets: Tensor | int | None = None,
        num_images: Tensor | int | None = None,
        logits_to_keep: int | Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        image_mask: Tensor | None = None,
        image_numbers: Tensor | None = None,
        token_positions: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        progress: float = 1.0,
        **kwargs: Any,
    ) -> EveOutput:
        """Run the decoder over text and images; with labels, return the losses.

        Args:
            input_ids: (B, T) int64 with every image slot expanded to its number of tokens.
            labels: (B, T) int64, not shifted, -100 where nothing is supervised.
            position_ids: (B, T) int64; in packed rows they restart at every sample. They count tokens, whatever the kind of
                positions.
            attention_mask: (B, T), 0 at padding; for batches that are padded instead of packed.
            cu_seqlens: (S + 1,) int32, boundaries of the samples over the flattened B * T tokens, for packed rows.
            max_seqlen: tokens of the longest sample of packed rows, or more; default: T.
            pixel_values: (P, 3 * p * p) uint8 patches of all images, (0, 3 * p * p) without images.
            image_grid_hw: (N, 2) int64, rows and columns in patches, in the order of the images' slots.
            teacher_pixel_values: (N, 3, C, C) uint8, needed with a teacher.
            teacher_features: (N, S, P, K) instead of them: all S hidden states of the teacher that supervisions look at, in
                their order, at its P patches.
            image_seeds: (N,) int64 of at least 0, needed by supervisions that draw random numbers, such as masked patches.
            target_positions: (M,) int64, see :func:`~lit_eve.losses.target_positions_of`, which is called if this is missing.
            image_positions: (n,) int64, places of the image slots in the flattened tokens, for kinds of decoders that need
                them; looked up if this is missing.
            num_targets: what the summed language loss is divided by; default: M.
            num_images: what losses that are summed over images are divided by; default: N.
            logits_to_keep: logits of the last n positions (0: of all), or of these positions; default: none with labels, else
                all.
            inputs_embeds: (B, T, D) instead of ``input_ids`` and images, see :meth:`embed_inputs`.
            image_mask: (B, T) bool beside ``inputs_embeds``, True at image slots; for the same kinds of decoders.
            image_numbers: (B, K) int64 of all tokens, those in the KV cache with them, see :meth:`number_images`. Needed beside
                ``inputs_embeds`` where images are not read like text, and beside a cache by an image attention that hides more.
            token_positions: (B, T, 4) int64, or (B, K, 4) of all tokens, see :meth:`position_tokens`. Needed beside
                ``inputs_embeds`` and beside a cache, by all kinds of positions but ``sequential``.
            past_key_values, use_cache: the KV cache of generation.
            progress: how much of the run's optimizer steps is done, 0 to 1, for supervisions whose weights have a schedule.
            **kwargs: go to the decoder.

        Raises:
            LitEveError: image slots and images do not match, or an argument that the others need is missing.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise LitEveError("give either input_ids or inputs_embeds")
        layout = supervisor = None
        if image_mask is not None and input_ids is not None:
            raise LitEveError("image_mask belongs to inputs_embeds; input_ids tell themselves where images are")
        if inputs_embeds is None:
            layout = self._layout(input_ids, pixel_values, image_grid_hw)
            if self.supervisions and labels is not None and layout is not None:
                sources = (image_grid_hw, pixel_values, teacher_pixel_values, teacher_features, image_seeds)
                supervisor = self._supervisor(layout, *sources, progress)
            inputs_embeds = self._embed(input_ids, pixel_values, image_grid_hw, layout, supervisor)  # (B, T, D)
        elif pixel_values is not None and len(pixel_values):
            raise LitEveError("pixel_values need input_ids; inputs_embeds hold the images already (model.embed_inputs)")

        kind, images = self.image_attention, None
        has_images = image_grid_hw is not None and len(image_grid_hw) > 0
        if not kind.is_causal and (has_images or kind.hides or input_ids is None):
            new = None if input_ids is None else self.number_images(input_ids, image_grid_hw, cu_seqlens)  # (B, T)
            tell = (attention_mask, position_ids, cu_seqlens, past_key_values)
            images = mask_of_batch(kind, inputs_embeds, new, image_numbers, *tell)
        decoder = self.get_decoder()
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "position_ids": position_ids}
        as_rows = lambda hidden: hidden  # noqa: E731
        if self.decoder_kind.needs_image_slots:
            if image_mask is None and image_numbers is not None and input_ids is None:
                image_mask = image_numbers[:, -inputs_embeds.shape[1] :] >= 0
            if input_ids is None and image_mask is None:
                raise LitEveError(
                    "inputs_embeds do not tell which of them are images', and this decoder must know: give image_mask"
                )
            is_image = image_mask if layout is None else layout.is_image
            kwargs["image_slots"] = ImageSlots.of(inputs_embeds, is_image, image_positions)
        if not self.positions.is_sequential:
            past, found = 0 if past_key_values is None else int(past_key_values.get_seq_length()), None
            if token_positions is None and input_ids is not None and not past:
                found = self.position_tokens(input_ids, image_grid_hw, attention_mask, cu_seqlens)
            name, length = self.config.positions["name"], inputs_embeds.shape[1]
            token_positions = known_positions(name, length, token_positions, found, past)
            kwargs |= self.positions.arguments(decoder, inputs_embeds, token_positions)
        elif token_positions is not None:
            raise LitEveError("token_positions: this model counts its tokens (positions 'sequential'); leave them out")
        if cu_seqlens is not None:
            if past_key_values is not None or attention_mask is not None:
                raise LitEveError("packed rows (cu_seqlens) have neither an attention_mask nor a KV cache")
            use_cache = False
            inputs, as_rows = packed_inputs(decoder, inputs_embeds, position_ids, cu_seqlens, max_seqlen, images)
        elif images is not None:
            mask = images.for_decoder(decoder.config, inputs_embeds, attention_mask, past_key_values)
            inputs["attention_mask"] = mask
        watched = nullcontext() if supervisor is None else supervisor.watch(blocks_of(decoder), as_rows)
        with watched:
            outputs = decoder(**inputs, past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        hidden = as_rows(outputs.last_hidden_state)  # (B, T, D)

        result = EveOutput(
            past_key_values=outputs.past_key_values,
            last_hidden_state=hidden,
            hidden_states=outputs.hidden_states and tuple(map(as_rows, outputs.hidden_states)),
            attentions=outputs.attentions,
        )
        if labels is not None:
            if target_positions is None:
                target_positions = target_positions_of(labels)  # (M,)
            result.terms = self._language_terms(hidden, labels, target_positions)
            if supervisor is not None:
                language = result.terms["language_loss"]
                result.terms["language_loss"] = language._replace(total=language.total + supervisor.nothing())
                result.terms |= supervisor.terms(inputs_embeds, hidden)
            own_images = 0 if image_grid_hw is None else len(image_grid_hw)
            counts = {
                "tokens": len(target_positions) if num_targets is None else num_targets,
                "images": own_images if num_images is None else num_images,
            }
            result.loss = weighted_sum(result.terms, counts)
            result.language_loss = mean_of(result.terms["language_loss"], counts)
            result.num_correct = result.terms["token_accuracy"].total
            if "alignment_loss" in result.terms:
                result.alignment_loss = mean_of(result.terms["alignment_loss"], counts)
        if logits_to_keep is None:
            logits_to_keep = 0 if labels is None else None
        if logits_to_keep is not None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result.logits = self._head(hidden[:, keep])
        return result

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

    def _language_terms(self, hidden: Tensor, labels: Tensor, positions: Tensor) -> dict[str, Term]:
        targets = labels.flatten()[positions + 1]  # (M,)
        states = hidden.flatten(0, 1).index_select(0, positions)  # (M, D)
        loss = next_token_loss(states, targets, self._head, count_correct=True)
        return {"language_loss": Term(loss.total, "tokens"), "token_accuracy": Term(loss.num_correct, "tokens", 0.0)}
