"""The encoder-free vision-language model: patches go through a thin embedding straight into a decoder-only language model.

Notation: B rows, T tokens per row, D width, V vocabulary, N images, P patches, C teacher image size, M supervised positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache
from transformers.utils import ModelOutput

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.losses import Term, mean_of, next_token_loss, target_positions_of, weighted_sum
from lit_eve.losses.terms import Count
from lit_eve.models.attention import IMAGE_ATTENTIONS
from lit_eve.models.checkpoints.skeletons import check_unsaved
from lit_eve.models.config import EveConfig
from lit_eve.models.decoders import (
    DECODER_KINDS,
    FamilyHead,
    add_lora,
    blocks_of,
    check_image_attention,
    usual_attention,
)
from lit_eve.models.generation.mixin import ImageGenerationMixin
from lit_eve.models.own import note_imports
from lit_eve.models.patch_embeddings import PATCH_EMBEDDINGS
from lit_eve.models.positions import POSITIONS
from lit_eve.models.projector import PROJECTORS
from lit_eve.models.reading import ReadingModel, TokenBatch
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


class EveForConditionalGeneration(ReadingModel, ImageGenerationMixin):
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
        if image_mask is not None and input_ids is not None:
            raise LitEveError("image_mask belongs to inputs_embeds; input_ids tell themselves where images are")
        layout = supervisor = None
        if inputs_embeds is None:
            layout = self._layout(input_ids, pixel_values, image_grid_hw)
            if self.supervisions and labels is not None and layout is not None:
                sources = (image_grid_hw, pixel_values, teacher_pixel_values, teacher_features, image_seeds)
                supervisor = self._supervisor(layout, *sources, progress)
            inputs_embeds = self._embed(input_ids, pixel_values, image_grid_hw, layout, supervisor)  # (B, T, D)
        elif pixel_values is not None and len(pixel_values):
            raise LitEveError("pixel_values need input_ids; inputs_embeds hold the images already (model.embed_inputs)")

        packing = (attention_mask, position_ids, cu_seqlens, past_key_values)
        batch = TokenBatch(inputs_embeds, input_ids, image_grid_hw, *packing)
        seen = self._mask_of_images(batch, image_numbers)
        kwargs |= self._slots_of_images(batch, layout, image_mask, image_numbers, image_positions)
        kwargs |= self._places_of_tokens(batch, token_positions)
        inputs, as_rows = self._laid_out(batch, seen, max_seqlen)

        decoder, cache = self.get_decoder(), {"past_key_values": past_key_values}
        cache["use_cache"] = use_cache if cu_seqlens is None else False
        watched = nullcontext() if supervisor is None else supervisor.watch(blocks_of(decoder), as_rows)
        with watched:
            outputs = decoder(**inputs, **cache, **kwargs)
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
            result.terms = self._terms(hidden, labels, target_positions, inputs_embeds, supervisor)
            own = {"tokens": len(target_positions), "images": 0 if image_grid_hw is None else len(image_grid_hw)}
            given = {"tokens": num_targets, "images": num_images}
            _add_up(result, {per: own[per] if count is None else count for per, count in given.items()})
        if logits_to_keep is None:
            logits_to_keep = 0 if labels is None else None
        if logits_to_keep is not None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            result.logits = self._head(hidden[:, keep])
        return result

    def _terms(
        self, hidden: Tensor, labels: Tensor, positions: Tensor, inputs_embeds: Tensor, supervisor: Supervisor | None
    ) -> dict[str, Term]:
        """What the loss is made of, of hidden states (B, T, D) behind the final norm and targets at (M,) positions."""
        targets = labels.flatten()[positions + 1]  # (M,)
        states = hidden.flatten(0, 1).index_select(0, positions)  # (M, D)
        loss = next_token_loss(states, targets, self._head, count_correct=True)
        total = loss.total if supervisor is None else loss.total + supervisor.nothing()
        terms = {"language_loss": Term(total, "tokens"), "token_accuracy": Term(loss.num_correct, "tokens", 0.0)}
        return terms if supervisor is None else terms | supervisor.terms(inputs_embeds, hidden)


def _add_up(result: EveOutput, counts: Mapping[Count, Tensor | int]) -> None:
    """Give the losses that follow from the terms of a result."""
    result.loss = weighted_sum(result.terms, counts)
    result.language_loss = mean_of(result.terms["language_loss"], counts)
    result.num_correct = result.terms["token_accuracy"].total
    if "alignment_loss" in result.terms:
        result.alignment_loss = mean_of(result.terms["alignment_loss"], counts)
