"""A pre-buffer: new layers in front of the language model's, for images and words (NEO, arXiv 2510.14979, section 3.1)."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.kinds import DECODER_KINDS, DecoderKind
from lit_eve.models.decoders.structure import blocks_of

EQUAL_LAYERS = {"arcee", "granite", "llama", "mistral", "olmo2", "qwen2", "qwen3", "seed_oss", "starcoder2"}
"""Families whose layers do not depend on their number, but by ``layer_types``
(``tests/models/decoders/test_pre_buffer.py``)."""

STD = 0.02
_LAYER = re.compile(r"(?<=\blayers\.)\d+")


@DECODER_KINDS.register("pre_buffer")
class PreBuffer(DecoderKind):
    """Layers in front, of the language model's own form; its layer i becomes layer i + ``layers``.

    Args:
        layers: how many.

    Raises:
        ConfigError: that is no positive whole number.
    """

    def __init__(self, layers: int) -> None:
        if type(layers) is not int or layers < 1:
            raise ConfigError(f"layers must be a whole number of at least 1, got {layers!r}")
        self.layers = layers

    def config_of(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """
        Raises:
            ConfigError: layers of this family depend on how many are in front of them.
        """
        self._check_family(config)
        config = copy.deepcopy(config)
        types = getattr(config, "layer_types", None)
        config.num_hidden_layers += self.layers
        if types is not None:
            config.layer_types = ["full_attention"] * self.layers + list(types)
        return config

    def name_of(self, name: str) -> str:
        return _LAYER.sub(lambda number: str(int(number[0]) + self.layers), name, count=1)

    def extend(self, language_model: PreTrainedModel) -> None:
        """The layers are there already: the config of the decoder counts them.

        Raises:
            ConfigError: layers of this family depend on their number, or there are no others than those in front.
        """
        config = language_model.config
        self._check_family(config)
        if config.num_hidden_layers <= self.layers:
            raise ConfigError(
                f"decoder_kind 'pre_buffer': of the {config.num_hidden_layers} layers of text_config, {self.layers} are new, "
                "and none is left for the language model"
            )

    def drawn(self, language_model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Matrices of the new layers from a normal distribution; gains of norms are 1, biases 0."""
        place = {id(parameter): name for name, parameter in language_model.named_parameters()}
        for block in blocks_of(language_model)[: self.layers]:
            for name, parameter in block.named_parameters():
                yield place[id(parameter)], _fresh(name, parameter)

    def _check_family(self, config: PreTrainedConfig) -> None:
        if (family := config.model_type) not in EQUAL_LAYERS:
            raise ConfigError(
                f"decoder_kind 'pre_buffer' is not for decoders of the family {family!r}, whose layers may depend on how many "
                f"are in front of them; only for {', '.join(sorted(EQUAL_LAYERS))}"
            )


def _fresh(name: str, like: nn.Parameter) -> Tensor:
    """A new weight, on the CPU."""
    if like.ndim > 1:
        return torch.randn(like.shape, device="cpu") * STD
    return torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0, device="cpu")
