"""From the YAML keys of :class:`~lit_eve.training.LitEve` to a model and its processor."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.losses import ALIGNERS
from lit_eve.models import PATCH_EMBEDDINGS, PROJECTORS, EveConfig, EveForConditionalGeneration, load
from lit_eve.processing import EveProcessor, ImageGeometry, templates

PARTS = ("patch_embedding", "projector", "geometry", "teacher_layer", "alignment_weight")
"""Keys that stand in the model's config under the same name."""


@dataclass(frozen=True)
class Blueprint:
    """What to build; the fields are documented in :class:`~lit_eve.training.LitEve`.

    Raises:
        ConfigError: a name or argument that does not exist, or not exactly one of ``init_from`` and ``decoder``.
    """

    init_from: str | None = None
    decoder: str | None = None
    patch_embedding: Mapping[str, Any] | None = None
    projector: Mapping[str, Any] | None = None
    geometry: Mapping[str, Any] | None = None
    teacher: str | None = None
    aligner: Mapping[str, Any] | None = None
    teacher_layer: int | None = None
    alignment_weight: float | None = None
    template: str | Mapping[str, Any] | None = None
    attn_implementation: str | None = None

    def __post_init__(self) -> None:
        if (self.init_from is None) == (self.decoder is None):
            raise ConfigError("give either model.init_from (go on from a model) or model.decoder (start a new one)")
        if self.aligner is not None and self.teacher is None:
            raise ConfigError("model.aligner needs model.teacher: without a teacher there is nothing to align to")
        for key, registry, context in (
            ("patch_embedding", PATCH_EMBEDDINGS, ("geometry",)),
            ("projector", PROJECTORS, ("input_size", "output_size")),
            ("aligner", ALIGNERS, ("hidden_size", "num_layers", "teacher_width")),
        ):
            if (spec := getattr(self, key)) is not None:
                try:
                    registry.check(spec, context)
                except ConfigError as error:
                    raise ConfigError(f"model.{key}: {error}") from error
        if unknown := set(self.geometry or ()) - ImageGeometry.__dataclass_fields__.keys():
            known = ", ".join(ImageGeometry.__dataclass_fields__)
            raise ConfigError(f"model.geometry has no key {', '.join(sorted(unknown))}; it has: {known}")
        if self.template is not None:
            try:
                templates.build({"name": self.template} if isinstance(self.template, str) else self.template)
            except ConfigError as error:
                raise ConfigError(f"model.template: {error}") from error
        name, known = self.attn_implementation, (*ALL_ATTENTION_FUNCTIONS, "eager")
        if name is not None and name not in known and "/" not in name:  # with a slash: a kernel of the hub
            raise ConfigError(f"model.attn_implementation: there is no {name!r}; known: {', '.join(sorted(known))}")
        if self.init_from is None:
            ImageGeometry(**(self.geometry or {}))

    @cached_property
    def config(self) -> EveConfig:
        """The architecture."""
        if self._source is not None:
            return self._overridden(self._source[0].config)
        try:
            text_config = AutoConfig.from_pretrained(self.decoder)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model.decoder: {self.decoder!r} is no causal language model: {error}") from error
        processor = EveProcessor(self._tokenizer, geometry=ImageGeometry(**(self.geometry or {})))
        config = EveConfig(
            text_config=text_config,
            image_token_id=processor.image_token_id,
            tie_word_embeddings=text_config.tie_word_embeddings,
            **{key: value for key in PARTS if (value := getattr(self, key)) is not None},
        )
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, key, getattr(text_config, key, None))
        return config

    @cached_property
    def processor(self) -> EveProcessor:
        """The processor of that architecture, with the decoder's tokenizer."""
        source = None if self._source is None else self._source[1]
        template = self.template or (source and source.template)
        return EveProcessor(
            self._tokenizer if source is None else source.tokenizer,
            geometry=self.config.image_geometry,
            image_token_id=self.config.image_token_id,
            image_mean=self.config.image_mean,
            image_std=self.config.image_std,
            **({"template": template} if template else {}),
        )

    def build(self) -> EveForConditionalGeneration:
        """The model with its weights, and with teacher and aligner if there is a teacher; in the default dtype.

        Raises:
            CheckpointError: weights are missing, or do not fit the architecture.
            ConfigError: the attention that was asked for is not installed.
        """
        model = self._from_decoder() if self._source is None else self._from_source()
        if self.attn_implementation is not None:
            try:
                model.language_model.set_attn_implementation(self.attn_implementation)
            except (ImportError, ValueError) as error:
                raise ConfigError(f"model.attn_implementation: {error}") from error
        return model.to(torch.get_default_dtype())

    # ---- a new model around a decoder

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self.decoder)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"model.decoder: {self.decoder!r} holds no tokenizer: {error}") from error

    def _from_decoder(self) -> EveForConditionalGeneration:
        config = self.config
        # The decoder comes with weights of its own: no time and memory for random ones.
        with torch.device("meta"):
            model = EveForConditionalGeneration(config)
        try:
            model.language_model = AutoModelForCausalLM.from_pretrained(
                self.decoder,
                config=config.text_config,
                attn_implementation=config.text_config._attn_implementation,
                dtype=torch.get_default_dtype(),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"model.decoder: {self.decoder!r} cannot be loaded: {error}") from error
        for part in (model.patch_embedding, model.projector):
            part.to_empty(device="cpu").apply(model._init_weights)
        if self.teacher is not None:
            model.attach_teacher(self.teacher, self.aligner)
        return model

    # ---- going on from a model

    @cached_property
    def _source(self) -> tuple[EveForConditionalGeneration, EveProcessor] | None:
        if self.init_from is None:
            return None
        if not Path(self.init_from).exists():
            raise CheckpointError(f"model.init_from: there is no {self.init_from!r}")
        return load(self.init_from, teacher=self.teacher or False)

    def _overridden(self, config: EveConfig) -> EveConfig:
        """``config`` with the keys that are given here: single keys of the geometry, other parts as a whole."""
        config = copy.deepcopy(config)
        for key in PARTS:
            value = getattr(self, key)
            if value is not None:
                setattr(config, key, {**config.geometry, **value} if key == "geometry" else value)
        return config

    def _from_source(self) -> EveForConditionalGeneration:
        source, config = self._source[0], self.config
        same_aligner = self.aligner is None or dict(self.aligner) == source.config.aligner
        if same_aligner and config.to_dict() == source.config.to_dict():
            return source
        model = EveForConditionalGeneration(config)
        if self.teacher is not None:
            model.attach_teacher(self.teacher, self.aligner)
        weights = source.state_dict()
        if not same_aligner:
            fresh = {key: value for key, value in model.state_dict().items() if key.startswith("aligner.")}
            weights = {key: value for key, value in weights.items() if not key.startswith("aligner.")} | fresh
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f"model.init_from: the weights of {self.init_from!r} do not fit: {error}") from error
        return model
