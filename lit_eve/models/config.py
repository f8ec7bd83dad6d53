"""EveConfig: everything that the architecture is, in one config.json."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, configuration_utils

from lit_eve.models.decoders.families import check_decoder
from lit_eve.processing.geometries import GEOMETRIES, ImageGeometry, named_geometry
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD


class EveConfig(PreTrainedConfig):
    """Configuration of :class:`~lit_eve.models.EveForConditionalGeneration`.

    Args:
        text_config: config of the decoder, any causal LM of transformers (a config, or a dict with its ``model_type``). It
            counts the layers that ``decoder_kind`` adds.
        decoder_kind: ``{"name": ..., **arguments}`` of what is built into the decoder (``dense``: nothing).
        lora: ``rank``, ``alpha``, ``dropout``, ``target_modules`` and ``use_dora`` of adapters that peft puts into the decoder;
            None without them.
        patch_embedding: ``{"name": ..., **arguments}`` of a registered patch embedding.
        projector: ``{"name": ..., **arguments}`` of a registered projector.
        image_attention: ``{"name": ..., **arguments}`` of a registered image attention; default: ``causal``.
        positions: ``{"name": ..., **arguments}`` of a registered kind of positions; default: ``sequential``.
        geometry: ``{"name": ..., **arguments}`` of a registered geometry (:mod:`lit_eve.processing.geometries`).
        aligner: ``{"name": ..., **arguments}`` of a registered aligner that the model was trained with; None without one.
        teacher: folder or hub name of the teacher that the aligner predicts; None without one.
        teacher_layer: hidden state of the teacher that is predicted.
        teacher_image_size: side of the squares that the teacher sees; None: what its config says.
        alignment_weight: factor of the alignment loss in the total loss, where ``supervision`` does not say.
        supervision: losses at image tokens that the model was trained with, each ``{"name": ..., "weight": 1.0, **arguments}``
            of a registered supervision, where the weight may be points of a schedule; None: patch alignment if it had a
            teacher.
        image_token_id: id that marks an image slot in ``input_ids``. It may lie outside the vocabulary: the row is never
            looked up. Default: the first id behind the vocabulary.
        imports: where the parts come from that are not lit_eve's: the module of each such ``decoder_kind``, ``geometry``,
            ``patch_embedding``, ``projector``, ``image_attention``, ``positions``, ``aligner``, ``supervision.<name>`` and
            ``supervision.<name>.aligner``; ``module:Class`` of a ``model`` class of its own, and of the ``training`` class
            that may have changed how it answers. The model writes them down; nothing is ever imported because it stands here.
        image_mean, image_std: normalisation of pixels in 0..1, per channel.
    """

    model_type = "lit_eve"
    if hasattr(configuration_utils, "SubConfigSpec"):  # newer versions of transformers leave its defaults out of config.json
        sub_configs_defaults = {"text_config": configuration_utils.SubConfigSpec(AutoConfig, model_type="llama")}
    else:
        sub_configs = {"text_config": AutoConfig}

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    decoder_kind: dict[str, Any] | None = None
    lora: dict[str, Any] | None = None
    patch_embedding: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None
    image_attention: dict[str, Any] | None = None
    positions: dict[str, Any] | None = None
    geometry: dict[str, Any] | None = None
    aligner: dict[str, Any] | None = None
    teacher: str | None = None
    teacher_layer: int = -2
    teacher_image_size: int | None = None
    alignment_weight: float = 1.0
    supervision: list[dict[str, Any]] | None = None
    image_token_id: int | None = None
    imports: dict[str, str] | None = None
    image_mean: tuple[float, ...] | list[float] = CLIP_MEAN
    image_std: tuple[float, ...] | list[float] = CLIP_STD
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.text_config, PreTrainedConfig):  # before the base class, which hands settings on to it
            self.text_config = AutoConfig.for_model(**{"model_type": "llama", **(self.text_config or {})})
        super().__post_init__(**kwargs)
        check_decoder(self.text_config)
        self.decoder_kind = dict(self.decoder_kind or {"name": "dense"})
        self.patch_embedding = dict(self.patch_embedding or {"name": "eve_v1"})
        self.projector = dict(self.projector or {"name": "mlp_gelu"})
        self.image_attention = dict(self.image_attention or {"name": "causal"})
        self.positions = dict(self.positions or {"name": "sequential"})
        if self.supervision is not None:
            self.supervision = [dict(entry) for entry in self.supervision]
        self.imports = dict(self.imports or {})
        geometry = named_geometry(self.geometry or {})
        GEOMETRIES.require(geometry["name"], self.imports.get("geometry"))
        self.geometry = ImageGeometry.from_dict(geometry).to_dict()
        self.image_mean, self.image_std = list(self.image_mean), list(self.image_std)
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size

    @property
    def image_geometry(self) -> ImageGeometry:
        """The geometry as an object."""
        return ImageGeometry.from_dict(self.geometry)
