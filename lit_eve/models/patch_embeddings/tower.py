"""Patch embeddings with an encoder that was trained before: ``tower``. What lies beside it is new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lit_eve.errors import ConfigError
from lit_eve.models.patch_embeddings.base import PATCH_EMBEDDINGS, PatchEmbedding
from lit_eve.processing.geometries import ImageGeometry, SquareViews

TOWER = "tower"
"""Name of the module, and of the argument that describes it."""


class TowerPatchEmbedding(PatchEmbedding):
    """An encoder of a model of transformers, and new weights beside it.

    A YAML names the folder or hub name to take config and weights of the encoder from;
    :class:`~lit_eve.training.blueprint.Blueprint` reads them. If the stage freezes all of the encoder, it runs in eval mode.
    """

    tower: nn.Module

    @property
    def trains(self) -> bool:
        """Whether any weight of the encoder does."""
        return any(parameter.requires_grad for parameter in self.tower.parameters())

    def reset_parameters(self) -> None:
        """The encoder's own initialisation, and that of what is beside it."""
        self.reset_beside()
        if hasattr(self, TOWER):
            self.tower.apply(self.tower._init_weights)

    def reset_beside(self) -> None:
        """Draw what is not of the encoder."""
        super().reset_parameters()


def has_tower(spec: Mapping[str, Any] | None) -> bool:
    """Whether a patch embedding is one with a tower."""
    name = None if spec is None else spec.get("name")
    return name in PATCH_EMBEDDINGS and issubclass(PATCH_EMBEDDINGS[name], TowerPatchEmbedding)


def check_tower_spec(name: str, tower: Any, geometry: ImageGeometry) -> None:
    """Raise ConfigError if a tower is not given by its config, or its images are not of one size."""
    if not isinstance(tower, Mapping):
        raise ConfigError(f"patch embedding {name!r}: tower = {tower!r} is a name; here it must be the config of the encoder")
    if not isinstance(geometry, SquareViews):
        other = geometry.to_dict()["name"]
        raise ConfigError(f"patch embedding {name!r} sees squares of one size (square, tiles), not geometry {other!r}")
