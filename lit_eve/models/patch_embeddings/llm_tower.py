"""An encoder that begins as a language model, as in Penguin-VL (arXiv 2603.06569): its layers, but read in both directions.

Notation: Q tokens of all views, N views, s tokens along a side of a view, K width of the encoder.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from lit_eve.errors import ConfigError, one_line
from lit_eve.models.decoders.pre_buffer import EQUAL_LAYERS
from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens
from lit_eve.models.patch_embeddings.tower import TowerPatchEmbedding, check_tower_spec
from lit_eve.processing.geometries import ImageGeometry


@PATCH_EMBEDDINGS.register("llm_tower")
class LlmTowerPatchEmbedding(TowerPatchEmbedding):
    """A matrix makes a token of each pooling window, and layers of a language model let all tokens of a view see each other.

    Tokens have the language model's positions, row by row, and a learned vector of their place, which begins at zero. Its last
    norm follows its last layer here; its embedding table and head are left out.

    Args:
        geometry: ``square`` or ``tiles``: views of one size.
        tower: the language model's config, ``model_type`` with it. In a YAML, the folder or hub name to take config and
            weights from.
        layers: how many of its layers, the first ones; null: all.

    Raises:
        ConfigError: another geometry, a config that cannot be, or there are not so many layers.
    """

    def __init__(self, geometry: ImageGeometry, tower: str | dict[str, Any], layers: int | None = None) -> None:
        check_tower_spec("llm_tower", tower, geometry)
        try:
            config = first_layers(llm_config(tower), layers)
        except ConfigError as error:
            raise ConfigError(f"patch embedding 'llm_tower': {error}") from error
        super().__init__(geometry, config.hidden_size)
        self.side = geometry.image_size // geometry.token_size
        self.projection = nn.Linear(geometry.window_dim, self.width)
        self.places = nn.Parameter(torch.empty(self.side**2, self.width))
        self.tower = build_llm_tower(config)
        self.reset_beside()

    def reset_beside(self) -> None:
        super().reset_beside()
        if hasattr(self, "places"):
            self.projection.reset_parameters()
            nn.init.zeros_(self.places)

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int) -> ImageTokens:
        """(P, 3 * p * p) patches, those of a window side by side -> tokens of all views; they share one class token."""
        trains = self.trains
        self.tower.train(self.training and trains)
        windows = rearrange(patches, "(q w) d -> q (w d)", w=self.window)
        tokens = rearrange(self.projection(windows), "(n s) k -> n s k", s=self.side**2) + self.places
        # Without images a blank one takes their place, so that all processes of a sharded model do the same.
        seen = tokens if len(tokens) else self.places[None] + self.projection(windows.new_zeros(1, windows.shape[1]))
        states = read_both_ways(self.tower, seen)[: len(tokens)]
        return self.with_embeddings(rearrange(states, "n s k -> (n s) k"), num_images)


def llm_config(fields: dict[str, Any]) -> PreTrainedConfig:
    """The config of a language model of its keys, ``model_type`` with them.

    Raises:
        ConfigError: its family is not known to be right here, or values cannot be.
    """
    if (family := fields.get("model_type")) not in EQUAL_LAYERS:
        raise ConfigError(
            f"an encoder cannot be made of a model of the type {family!r}, only of {', '.join(sorted(EQUAL_LAYERS))}"
        )
    try:
        return AutoConfig.for_model(**fields)
    except Exception as error:  # of what stands in a file, transformers raises errors of all kinds
        raise ConfigError(one_line(error)) from error


def first_layers(config: PreTrainedConfig, layers: int | None) -> PreTrainedConfig:
    """The config with so many layers.

    Raises:
        ConfigError: that is no whole number from 1 to as many as there are.
    """
    config = copy.deepcopy(config)
    if layers is None:
        return config
    if type(layers) is not int or not 1 <= layers <= config.num_hidden_layers:
        raise ConfigError(f"layers must be a whole number from 1 to {config.num_hidden_layers}, got {layers!r}")
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:layers]
    return config


def build_llm_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Its layers and last norm, with random weights."""
    tower = AutoModel.from_config(config, attn_implementation="sdpa")
    tower.set_input_embeddings(nn.Identity())  # tokens come as vectors
    return tower


def read_both_ways(tower: PreTrainedModel, tokens: Tensor) -> Tensor:
    """(N, S, K) vectors -> hidden states (N, S, K) behind the last norm; every token sees all of its own row."""
    everything = tokens.new_zeros(1, 1, *tokens.shape[1:2] * 2)  # a mask that adds nothing: without one, the past is seen alone
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    mask = everything.expand(len(tokens), -1, -1, -1)
    return tower(inputs_embeds=tokens, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
