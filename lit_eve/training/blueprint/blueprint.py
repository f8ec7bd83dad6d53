"""From the YAML keys of :class:`~lit_eve.training.LitEve` to a model and its processor.

keys -> config -> skeleton (meta device, no memory) -> [sharded over devices] -> filled with weights, one tensor at a time
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig

from lit_eve.data.features import TeacherFeatures
from lit_eve.errors import CheckpointError, ConfigError, LitEveError, not_found
from lit_eve.files import local_path
from lit_eve.imports import path_of
from lit_eve.models import (
    PACKED,
    PACKED_SDPA,
    PACKED_VARLEN,
    EveConfig,
    EveForConditionalGeneration,
)
from lit_eve.models.attention import check_takes_masks
from lit_eve.models.checkpoints.catalog import known_decoder
from lit_eve.models.checkpoints.filling import check_weights, fill
from lit_eve.models.checkpoints.folders import is_hub_name
from lit_eve.models.checkpoints.loading import read_architecture
from lit_eve.models.checkpoints.weights import is_checkpoint
from lit_eve.models.decoders import DECODER_KINDS, check_decoder, keeps_samples_apart
from lit_eve.models.decoders.quantized import quantize
from lit_eve.models.generation.answer_ends import end_answers, stored_ends
from lit_eve.models.own import model_class_of
from lit_eve.processing import EveProcessor, ImageGeometry, TeacherGrid
from lit_eve.records import differences
from lit_eve.training.architecture import is_irrelevant, other_parts
from lit_eve.training.blueprint.growth import check_growth, is_dense
from lit_eve.training.blueprint.keys import check_keys
from lit_eve.training.blueprint.teachers import NamedTeacher
from lit_eve.training.blueprint.towers import NamedTower, check_pixels, check_same_tower, named_tower
from lit_eve.training.blueprint.weights import WeightSources
from lit_eve.training.stages import Lora

PARTS = (
    *("decoder_kind", "patch_embedding", "projector", "image_attention", "positions", "geometry"),
    *("image_mean", "image_std", "teacher_layer", "teacher_image_size", "alignment_weight"),
)
"""Keys that stand in the model's config under the same name."""


@dataclass(frozen=True)
class Blueprint:
    """What to build; the fields are documented in :class:`~lit_eve.training.LitEve`.

    Raises:
        ConfigError: a name or argument that does not exist, or neither ``init_from`` nor ``decoder``.
    """

    init_from: str | None = None
    decoder: str | None = None
    decoder_kind: Mapping[str, Any] | None = None
    lora: Lora | None = None
    patch_embedding: Mapping[str, Any] | None = None
    projector: Mapping[str, Any] | None = None
    image_attention: Mapping[str, Any] | None = None
    positions: Mapping[str, Any] | None = None
    geometry: Mapping[str, Any] | None = None
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    teacher: str | None = None
    aligner: Mapping[str, Any] | None = None
    teacher_layer: int | None = None
    teacher_image_size: int | None = None
    teacher_features: bool = False
    alignment_weight: float | None = None
    supervision: Sequence[Mapping[str, Any]] | None = None
    template: str | Mapping[str, Any] | None = None
    around_images: Mapping[str, Any] | None = None
    attn_implementation: str | None = None
    model_class: type[EveForConditionalGeneration] | None = None

    def __post_init__(self) -> None:
        for key in ("init_from", "decoder", "teacher"):
            if (path := getattr(self, key)) is not None:
                object.__setattr__(self, key, local_path(path, f"model.{key}"))
        check_keys(self)

    # ---- what is built

    @cached_property
    def config(self) -> EveConfig:
        """The architecture, as found in ``init_from`` or at the decoder."""
        if self.source is None:
            config = self._around(self._decoder_config)
            config.image_token_id = EveProcessor(self._tokenizer, geometry=config.image_geometry).image_token_id
            return config
        if self.decoder is not None:
            self._check_same_decoder(self.source[0])
        config = self._overridden(self.source[0])
        check_growth(self.init_from, self.source[0], config)
        check_same_tower(config, self.source[0], self.init_from)
        return config

    @cached_property
    def teacher_grid(self) -> TeacherGrid | None:
        """The patches of the squares that batches must hold for the teacher; None where it is not there."""
        return None if self.teacher is None or self.teacher_features else self.named_teacher.grid

    @cached_property
    def named_teacher(self) -> NamedTeacher:
        """What ``teacher`` names, beside this model."""
        return NamedTeacher(self.teacher, self.config, self.teacher_features)

    @cached_property
    def needed_features(self) -> TeacherFeatures | None:
        """What is needed of the teacher's features, if they are in the shards."""
        if not self.teacher_features:
            return None
        states = {state for one in self.skeleton().supervisions.values() for state in one.teacher_states}
        return self.named_teacher.features(states)

    @cached_property
    def processor(self) -> EveProcessor:
        """The processor of that architecture, with the tokenizer of ``init_from`` or the decoder."""
        config, source = self.config, None if self.source is None else self.source[1]
        template, around, limits = self.template or (source and source.template), self.around_images, {}
        if source is not None:
            around = source.around_images.to_dict() if around is None else around
            limits = {key: getattr(source, key) for key in ("max_image_pixels", "max_aspect_ratio")}
        return EveProcessor(
            self._tokenizer if source is None else source.tokenizer,
            geometry=config.image_geometry,
            image_token_id=config.image_token_id,
            image_mean=config.image_mean,
            image_std=config.image_std,
            around_images=around,
            **limits,
            **({"template": template} if template else {}),
        )

    @property
    def planned_processor(self) -> EveProcessor:
        """The processor, also where ``init_from`` is still to be trained: it will have the tokenizer of the decoder."""
        if self.decoder is None or self._is_there:
            return self.processor
        return replace(self, init_from=None).processor

    def check(self) -> None:
        """Raise ConfigError or CheckpointError if something is missing or does not fit.

        Weights are not read; those of the hub are in its cache after this.
        """
        processor = self.processor
        try:
            processor.answer_end()  # says whether the template can be written with this tokenizer
        except ConfigError as error:
            raise ConfigError(f"model.template: {error}") from error
        if self.teacher is not None:
            self.named_teacher.check_files()
        if self.tower is not None and self.init_from is None:
            self.tower.check_files()
        self._stored_ends()
        model = self.skeleton()
        model.teacher = None  # whose weights were looked at above
        key, sources = "decoder" if self.init_from is None else "init_from", WeightSources(self)
        try:  # what the hub has is downloaded
            weights = sources.of(model, model.patch_embedding, shapes_only=True)
            check_weights(model, may_be_new=sources.may_be_new, source=getattr(self, key), **weights)
        except CheckpointError as error:
            other = "" if self.source is None else other_parts(self.source[0], self.config, PARTS)
            raise CheckpointError(f"model.{key}: {error}{other}") from error

    def skeleton(self, planned: bool = False) -> EveForConditionalGeneration:
        """The model on the meta device, with teacher and heads of supervisions; in the default dtype.

        Args:
            planned: nothing needs to be there yet, neither ``init_from`` nor a tokenizer; well-known decoders and teachers are
                taken from a list, without a network (:mod:`lit_eve.models.checkpoints.catalog`).
        """
        config = self._planned_config if planned else self.config
        if self.attn_implementation in (PACKED, PACKED_SDPA, PACKED_VARLEN) and not keeps_samples_apart(config.text_config):
            raise ConfigError(
                f"model.attn_implementation: {self.attn_implementation!r} is not for decoders of the family "
                f"{config.text_config.model_type!r}; leave it out, or choose one of transformers'"
            )
        if self.model_class is not None and (path := path_of(self.model_class)) is not None:
            config.imports["model"] = path
        with torch.device("meta"):
            model = (self.model_class or model_class_of(config) or EveForConditionalGeneration)(config)
            try:
                check_takes_masks(self.attn_implementation, model.image_attention)
                model.positions.check_attention(self.attn_implementation)
            except LitEveError as error:
                raise ConfigError(f"model.{error}") from error
            teacher = None
            if self.teacher is not None:
                config.teacher = self.teacher
                teacher = NamedTeacher(self.teacher, config, self.teacher_features).empty(planned)
            try:
                model.attach_supervision(teacher, self.aligner)
            except ConfigError as error:
                raise ConfigError(f"model.{error}" if str(error).startswith("supervision") else str(error)) from error
        return model.to(torch.get_default_dtype())

    def build(
        self,
        shard: Callable[[EveForConditionalGeneration], None] | None = None,
        device: torch.device | str = "cpu",
        teacher_dtype: torch.dtype | None = None,
    ) -> EveForConditionalGeneration:
        """The model with its weights, and with teacher and heads of supervisions.

        Args:
            shard: called with the model on the meta device; may replace its parameters by sharded ones. Every process then
                keeps its part of each tensor that is read.
            device: where the weights go.
            teacher_dtype: floating type of the teacher; None: the model's.

        Raises:
            CheckpointError: weights are missing, or do not fit the architecture.
            ConfigError: the attention that was asked for is not installed.
        """
        model = self.skeleton()
        if self.attn_implementation is not None:
            try:
                model.language_model.set_attn_implementation(self.attn_implementation)
            except (ImportError, ValueError) as error:
                raise ConfigError(f"model.attn_implementation: {error}") from error
        sources = WeightSources(self)
        teacher = None if self.teacher is None else self.named_teacher.load(model.dtype)
        parts = sources.parts(teacher)
        model.teacher = None  # read as a whole, and never sharded
        if shard is not None:
            shard(model)
        source = str(self.init_from or self.decoder)
        weights = sources.of(model, parts["patch_embedding"])
        fill(model, parts=parts, may_be_new=sources.may_be_new, device=device, source=source, **weights)
        if self.lora is not None and self.lora.quantization is not None:
            quantize(model.language_model)
        if teacher is not None:
            model.teacher = teacher.to(device, teacher_dtype or model.dtype)
        end_answers(model, self.processor, self._stored_ends())
        return model

    def _stored_ends(self) -> list[int | list[int] | None]:
        """Where answers end according to the generation_config.json of the decoder and of ``init_from``."""
        ends = []
        for name in (self.decoder, self.init_from):
            if name is None or is_checkpoint(name):
                continue
            if Path(name).exists():
                ends += stored_ends(Path(name)) or stored_ends(Path(name, "model"))
            else:
                with suppress(OSError):  # there is none on the hub
                    ends.append(GenerationConfig.from_pretrained(name).eos_token_id)
        return ends

    # ---- a new model around a decoder

    @cached_property
    def _decoder_config(self) -> PreTrainedConfig:
        return self._read(AutoConfig, "decoder", "causal language model")

    @cached_property
    def _tokenizer(self) -> Any:
        return self._read(AutoTokenizer, "decoder", "folder with a tokenizer")

    def _read(self, kind: type, key: str, what: str) -> Any:
        """Config or tokenizer of the folder or hub name that a key holds."""
        name = getattr(self, key)
        if Path(name).is_file():
            raise CheckpointError(f"model.{key}: {name!r} is a file; give the folder that it lies in")
        try:
            return kind.from_pretrained(name)
        except Exception as error:  # of what stands in a file, transformers raises errors of all kinds
            raise not_found(f"model.{key}", name, what, error) from error

    @cached_property
    def tower(self) -> NamedTower | None:
        """The encoder that ``patch_embedding`` names."""
        return named_tower(self.patch_embedding)

    def _given(self, planned: bool = False) -> dict[str, Any]:
        """The parts that are given here, as the model's config has them."""
        given = {key: value for key in PARTS if (value := getattr(self, key)) is not None}
        return given if self.tower is None else given | {"patch_embedding": self.tower.settled(planned)}

    def _around(self, text_config: PreTrainedConfig, planned: bool = False) -> EveConfig:
        try:
            check_decoder(text_config)
        except ConfigError as error:
            raise ConfigError(f"model.decoder: {self.decoder!r}: {error}") from error
        config = EveConfig(
            text_config=self._extended(self.decoder_kind, copy.deepcopy(text_config)),  # models write into their config
            tie_word_embeddings=getattr(text_config, "tie_word_embeddings", False),
            supervision=self.supervision,
            lora=self.lora and self.lora.architecture,
            **self._given(planned),
        )
        if self.tower is not None and (pixels := self.tower.pixels(planned)) is not None:
            check_pixels(config, pixels, self.tower.name)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, key, getattr(text_config, key, None))
        return config

    @cached_property
    def _planned_config(self) -> EveConfig:
        if self.decoder is not None:
            return self._around(known_decoder(self.decoder) or self._decoder_config, planned=True)
        if not self._is_there:
            raise CheckpointError(f"model.init_from: there is no {self.init_from!r} yet, and no model.decoder tells its shape")
        return self.config

    # ---- going on from a model

    @property
    def _is_there(self) -> bool:
        return self.init_from is not None and (Path(self.init_from).exists() or is_hub_name(self.init_from))

    @cached_property
    def source(self) -> tuple[EveConfig, EveProcessor] | None:
        """Config and processor of ``init_from``."""
        if self.init_from is None:
            return None
        if not self._is_there:
            raise CheckpointError(f"model.init_from: there is no {self.init_from!r}")
        return read_architecture(self.init_from)

    def _overridden(self, config: EveConfig) -> EveConfig:
        """``config`` with the keys that are given here: single keys of the geometry, other parts as a whole."""
        config = copy.deepcopy(config)
        for key, value in self._given().items():
            if key != "geometry":
                setattr(config, key, value)
        if is_dense(self.source[0]) and config.decoder_kind["name"] != "dense":
            config.text_config = self._extended(config.decoder_kind, config.text_config)
        config.lora = self.lora and self.lora.architecture
        config.supervision = None if self.supervision is None else [dict(entry) for entry in self.supervision]
        if self.geometry is not None:
            same = self.geometry.get("name") in (None, config.geometry["name"])
            config.geometry = ImageGeometry.from_dict({**(config.geometry if same else {}), **self.geometry}).to_dict()
        return config

    @staticmethod
    def _extended(kind: Mapping[str, Any] | None, text_config: PreTrainedConfig) -> PreTrainedConfig:
        """The config of the decoder that a kind makes of a language model of this one."""
        try:
            return DECODER_KINDS.build(kind or {"name": "dense"}).config_of(text_config)
        except ConfigError as error:
            raise ConfigError(f"model.decoder_kind: {error}") from error

    def _check_same_decoder(self, source: EveConfig) -> None:
        DECODER_KINDS.require(source.decoder_kind["name"], source.imports.get("decoder_kind"))
        wanted = self._extended(source.decoder_kind, self._decoder_config)
        both = (json.loads(config.to_json_string(use_diff=False)) for config in (source.text_config, wanted))
        if lines := [line for line in differences(*both) if not is_irrelevant(line)]:
            raise ConfigError(
                f"model.init_from: {self.init_from!r} was made around another decoder than model.decoder {self.decoder!r} "
                f"({'; '.join(lines[:6])})"
            )
