"""A vision encoder in front of the decoder, as in LLaVA (arXiv 2304.08485, 2310.03744): the encoder-based baseline.

Notation: P patches of p x p pixels, Q = P / pool^2 tokens, N views, s patches along a side of a view, K width of the encoder.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from lit_eve.errors import ConfigError
from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, ImageTokens
from lit_eve.models.patch_embeddings.tower import TowerPatchEmbedding, check_tower_spec
from lit_eve.processing.geometries import ImageGeometry
from lit_eve.vision_towers import build_tower, cut_tower, depth_of, patch_states, tower_config


@PATCH_EMBEDDINGS.register("vision_tower")
class VisionTowerPatchEmbedding(TowerPatchEmbedding):
    """One hidden state of a vision encoder at its patches, those of a pooling window side by side.

    The encoder's later layers, the norm behind them and heads are left out. If the stage freezes it, it keeps nothing for a
    backward pass. Views of another size than its own are seen with interpolated positions.

    Args:
        geometry: ``square`` or ``tiles``: views of one size, with the encoder's patches.
        tower: the vision half's config, ``model_type`` with it. In a YAML, the folder or hub name to take config and weights
            from.
        layer: which hidden state, counted as in transformers (-2: LLaVA's, the output of the last layer but one).

    Raises:
        ConfigError: another geometry, a config that cannot be, or there is no such layer.
    """

    def __init__(self, geometry: ImageGeometry, tower: str | dict[str, Any], layer: int = -2) -> None:
        check_tower_spec("vision_tower", tower, geometry)
        try:
            config = tower_config(tower)
            depth = depth_of(config, layer, "layer")
        except ConfigError as error:
            raise ConfigError(f"patch embedding 'vision_tower': {error}") from error
        if depth == 0:
            raise ConfigError("patch embedding 'vision_tower': layer must be behind at least one layer of the encoder")
        if geometry.patch_size != config.patch_size:
            raise ConfigError(
                f"patch embedding 'vision_tower': the encoder has patches of {config.patch_size} pixels, but "
                f"geometry.patch_size is {geometry.patch_size}"
            )
        super().__init__(geometry, geometry.pool_size**2 * config.hidden_size)
        self.pool_size, self.side = geometry.pool_size, geometry.image_size // geometry.token_size  # of a view, in windows
        self.patch_size = geometry.patch_size
        self.tower = cut_tower(build_tower(config), depth)

    def forward(self, patches: Tensor, image_of_token: Tensor, num_images: int) -> ImageTokens:
        """(P, 3 * p * p) patches, those of a window side by side -> tokens of all views; they share one class token."""
        sizes = {"h": self.side, "w": self.side, "i": self.pool_size, "j": self.pool_size}
        pixels = rearrange(patches, "(n h w i j) (c y x) -> n c (h i y) (w j x)", c=3, y=self.patch_size, **sizes)
        trains = self.trains
        self.tower.train(self.training and trains)
        with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
            # Without images a blank one takes their place, so that all processes of a sharded model do the same.
            seen = pixels if len(pixels) else pixels.new_zeros(1, *pixels.shape[1:])
            states = patch_states(self.tower, seen)[-1][: len(pixels)]  # (N, s * s, K)
        return self.with_embeddings(rearrange(states, "n (h i w j) k -> (n h w) (i j k)", **sizes), num_images)
