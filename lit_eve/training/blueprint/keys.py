"""What can be known to be wrong in the YAML keys of a model before anything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import ConfigError
from lit_eve.losses import ALIGNERS
from lit_eve.models import IMAGE_ATTENTIONS, PATCH_EMBEDDINGS, POSITIONS, PROJECTORS
from lit_eve.models.decoders import DECODER_KINDS, quantized
from lit_eve.models.decoders.lora import check_installed
from lit_eve.models.own import attention_module
from lit_eve.models.supervision import check_entries, needs_teacher
from lit_eve.processing import GEOMETRIES, ImageGeometry, templates
from lit_eve.processing.around_images import AroundImages
from lit_eve.processing.geometries import named_geometry

if TYPE_CHECKING:
    from lit_eve.training.blueprint import Blueprint


def check_keys(keys: Blueprint) -> None:
    """
    Raises:
        ConfigError: a name, argument or value that does not exist or cannot be, or neither ``init_from`` nor ``decoder``.
    """
    if keys.init_from is None and keys.decoder is None:
        raise ConfigError("give model.decoder (start a new model), model.init_from (go on from a model), or both")
    if keys.model_class is not None and "<locals>" in keys.model_class.__qualname__:
        raise ConfigError(f"model_class {keys.model_class.__name__} stands inside a function: it must stand in a module")
    if keys.alignment_weight is not None and keys.alignment_weight < 0:
        raise ConfigError(f"model.alignment_weight must be at least 0, got {keys.alignment_weight}")
    if keys.teacher_features and keys.teacher is None:
        raise ConfigError("model.teacher_features needs model.teacher: whose features are in the shards?")
    size = keys.teacher_image_size
    if size is not None and size < 1:
        raise ConfigError(f"model.teacher_image_size must be a number of pixels, got {size}")
    for key in ("image_mean", "image_std"):
        value = getattr(keys, key)
        if value is not None and (len(value) != 3 or (key == "image_std" and min(value) <= 0)):
            raise ConfigError(f"model.{key} must be three numbers, one per channel, got {list(value)}")
    if keys.aligner is not None and keys.teacher is None:
        raise ConfigError("model.aligner needs model.teacher: without a teacher there is nothing to align to")
    _check_lora(keys)
    _check_supervision(keys)
    for key, registry, context in (
        ("decoder_kind", DECODER_KINDS, ()),
        ("patch_embedding", PATCH_EMBEDDINGS, ("geometry", "hidden_size")),
        ("projector", PROJECTORS, ("input_size", "output_size")),
        ("image_attention", IMAGE_ATTENTIONS, ()),
        ("positions", POSITIONS, ()),
        ("aligner", ALIGNERS, ("hidden_size", "num_layers", "teacher_width")),
    ):
        if (spec := getattr(keys, key)) is not None:
            try:
                registry.check(spec, context)
                if not context:
                    registry.build(spec)  # which looks at its arguments
            except ConfigError as error:
                raise ConfigError(f"model.{key}: {error}") from error
    _check_geometry(keys)
    if keys.template is not None:
        try:
            templates.build({"name": keys.template} if isinstance(keys.template, str) else keys.template)
        except ConfigError as error:
            raise ConfigError(f"model.template: {error}") from error
    try:
        AroundImages.of(keys.around_images)
    except ConfigError as error:
        raise ConfigError(f"model.{error}") from error
    name, known = keys.attn_implementation, (*ALL_ATTENTION_FUNCTIONS, "eager")
    if name is not None and name not in known and "/" not in name:  # with a slash: a kernel of the hub
        raise ConfigError(f"model.attn_implementation: there is no {name!r}; known: {', '.join(sorted(known))}")
    if (module := attention_module(name)) is not None:
        raise ConfigError(
            f"model.attn_implementation: {name!r} is of your own (`{module}`), and a saved model would be loaded without "
            "it: let the constructor of a model_class choose it"
        )


def _check_lora(keys: Blueprint) -> None:
    if keys.lora is None:
        return
    try:
        check_installed()
        if keys.lora.quantization is not None:
            quantized.check_installed()
    except ConfigError as error:
        raise ConfigError(f"model.stage: {error}") from error
    if keys.decoder_kind is not None and keys.decoder_kind.get("name") != "dense":
        raise ConfigError(
            f"model.stage: lora beside decoder_kind {keys.decoder_kind.get('name')!r} is not proven to be right: leave one out"
        )


def _check_supervision(keys: Blueprint) -> None:
    if keys.supervision is None:
        return
    try:
        check_entries(keys.supervision)
    except ConfigError as error:
        raise ConfigError(f"model.supervision: {error}") from error
    for key in ("aligner", "alignment_weight"):
        if getattr(keys, key) is not None:
            name = key.removeprefix("alignment_")
            raise ConfigError(
                f"model.{key}: beside model.supervision it stands in the entry patch_alignment there, as {name!r}"
            )
    needing = [entry["name"] for entry in keys.supervision if needs_teacher(entry["name"])]
    if keys.teacher is None and needing:
        raise ConfigError(f"model.supervision: {needing[0]!r} needs model.teacher")
    if keys.teacher is not None and not needing:
        raise ConfigError("model.teacher: nothing in model.supervision looks at it; set it to null")


def _check_geometry(keys: Blueprint) -> None:
    geometry = dict(keys.geometry or {})
    try:
        if keys.decoder is not None or "name" in geometry:
            ImageGeometry.from_dict(geometry)
            return
        # Single keys of what init_from has, whichever that is.
        known = {field for name in GEOMETRIES for field in GEOMETRIES[name].__dataclass_fields__}
        if unknown := named_geometry(geometry).keys() - known - {"name"}:
            raise ConfigError(f"no geometry has a key {', '.join(sorted(unknown))}")
    except ConfigError as error:
        raise ConfigError(f"model.geometry: {error}") from error
