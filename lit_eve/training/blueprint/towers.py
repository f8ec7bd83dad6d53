"""The vision tower of a recipe: a name in the YAML becomes a config in ``config.json``, and weights that are streamed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_eve.errors import ConfigError
from lit_eve.files import local_path
from lit_eve.models import EveConfig, PatchEmbedding
from lit_eve.models.checkpoints.skeletons import parameters_on_meta
from lit_eve.models.checkpoints.towers import empty_tower, tower_weights
from lit_eve.records import differences
from lit_eve.training.blueprint.encoders import NamedEncoder
from lit_eve.vision_towers import cut_tower, depth_of, fields_of

KEY = "model.patch_embedding.tower"
_PREFIX = "patch_embedding.tower."


@dataclass(frozen=True)
class NamedTower(NamedEncoder):
    """A vision encoder that ``patch_embedding: {name: vision_tower, tower: NAME}`` names.

    Args:
        name: folder or hub name.
        spec: of the patch embedding.
    """

    key = KEY

    spec: Mapping[str, Any]

    @classmethod
    def of(cls, spec: Mapping[str, Any] | None) -> NamedTower | None:
        """The one that a patch embedding names; None for other patch embeddings, and for a config."""
        if spec is None or spec.get("name") != "vision_tower" or not isinstance(spec.get("tower"), str):
            return None
        return cls(local_path(spec["tower"], KEY), spec)

    def settled(self, planned: bool = False) -> dict[str, Any]:
        """The patch embedding with the tower's config in place of its name."""
        return {**self.spec, "tower": fields_of(self.read(planned)[0])}

    def weights(self, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The weights that the model has of it, one after another, under the names of the model."""
        config, _ = self.read()
        tower = cut_tower(empty_tower(config, self.name, KEY), depth_of(config, self.spec.get("layer", -2), "layer"))
        for name, value in tower_weights(self.name, tower, KEY, shapes_only):
            yield _PREFIX + name, value


def beside_tower(patch_embedding: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a patch embedding has besides its tower: class and split embeddings."""
    for name, value in patch_embedding.state_dict(prefix="patch_embedding.").items():
        if not name.startswith(_PREFIX):
            yield name, value


def without_tower(build: Callable[[], PatchEmbedding]) -> PatchEmbedding:
    """A patch embedding whose tower takes no memory, as its weights will be read; the rest is drawn."""
    with parameters_on_meta():
        part = build()
    for name, parameter in list(part.named_parameters(recurse=False)):
        setattr(part, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
    PatchEmbedding.reset_parameters(part)
    return part


def check_same_tower(config: EveConfig, source: EveConfig, init_from: str) -> None:
    """Raise ConfigError if a model with a vision tower would go on with another one, or with pixels of another kind."""
    both = [one.patch_embedding for one in (source, config)]
    if any(one["name"] != "vision_tower" for one in both):
        return
    if lines := differences(*both):
        raise ConfigError(f"{KEY}: {init_from!r} has another vision tower ({'; '.join(lines[:6])})")
    check_pixels(config, (source.image_mean, source.image_std), f"that of {init_from!r}")


def check_pixels(config: EveConfig, pixels: Sequence[Sequence[float]], what: str) -> None:
    """Raise ConfigError if a model normalises its pixels in another way than its vision tower was trained with."""
    for key, wanted in zip(("image_mean", "image_std"), pixels, strict=True):
        found = getattr(config, key)
        if not all(math.isclose(one, other, abs_tol=1e-6) for one, other in zip(found, wanted, strict=True)):
            raise ConfigError(
                f"model.{key} is {list(found)}, but the vision tower, {what}, was trained with {list(wanted)}: set it to this"
            )
