"""The tower of a recipe: a name in the YAML becomes a config in ``config.json``, and weights that are streamed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from lit_eve.errors import CheckpointError, ConfigError, not_found
from lit_eve.files import local_path
from lit_eve.models import EveConfig
from lit_eve.models.checkpoints.catalog import known_decoder
from lit_eve.models.checkpoints.skeletons import parameters_on_meta
from lit_eve.models.checkpoints.towers import empty_tower, tower_weights
from lit_eve.models.checkpoints.weights import iterate_weights
from lit_eve.models.patch_embeddings import has_tower
from lit_eve.models.patch_embeddings.llm_tower import build_llm_tower, first_layers, llm_config
from lit_eve.models.patch_embeddings.tower import TOWER, TowerPatchEmbedding
from lit_eve.records import differences
from lit_eve.training.blueprint.encoders import NamedEncoder
from lit_eve.vision_towers import Normalization, cut_tower, depth_of, fields_of

KEY = "model.patch_embedding.tower"
_PREFIX = "patch_embedding.tower."


class NamedTower(Protocol):
    """An encoder that ``patch_embedding: {name: ..., tower: NAME}`` names."""

    name: str

    def settled(self, planned: bool = False) -> dict[str, Any]:
        """The patch embedding with the tower's config in place of its name."""
        ...

    def pixels(self, planned: bool = False) -> Normalization | None:
        """The normalisation that it was trained with; None: it saw no pixels."""
        ...

    def check_files(self) -> None:
        """Raise CheckpointError for files and weights that are missing, damaged or of another shape."""
        ...

    def weights(self, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The weights that the model has of it, one after another, under the names of the model."""
        ...


def named_tower(spec: Mapping[str, Any] | None) -> NamedTower | None:
    """The encoder that a patch embedding names; None for other patch embeddings, and for a config."""
    kinds: dict[Any, type] = {"vision_tower": NamedVisionTower, "llm_tower": NamedLlmTower}
    if spec is None or spec.get("name") not in kinds or not isinstance(spec.get(TOWER), str):
        return None
    return kinds[spec["name"]](local_path(spec[TOWER], KEY), spec)


@dataclass(frozen=True)
class NamedVisionTower(NamedEncoder):
    """A vision encoder that ``patch_embedding: {name: vision_tower, tower: NAME}`` names.

    Args:
        name: folder or hub name.
        spec: of the patch embedding.
    """

    key = KEY

    spec: Mapping[str, Any]

    def pixels(self, planned: bool = False) -> Normalization:
        """Of the encoder."""
        return self.read(planned)[1]

    def settled(self, planned: bool = False) -> dict[str, Any]:
        """The patch embedding with the tower's config in place of its name."""
        return {**self.spec, "tower": fields_of(self.read(planned)[0])}

    def weights(self, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The weights that the model has of it, one after another, under the names of the model."""
        config, _ = self.read()
        tower = cut_tower(empty_tower(config, self.name, KEY), depth_of(config, self.spec.get("layer", -2), "layer"))
        for name, value in tower_weights(self.name, tower, KEY, shapes_only):
            yield _PREFIX + name, value


@dataclass(frozen=True)
class NamedLlmTower:
    """A language model that ``patch_embedding: {name: llm_tower, tower: NAME}`` names.

    Args:
        name: folder or hub name.
        spec: of the patch embedding.
    """

    name: str
    spec: Mapping[str, Any]

    def pixels(self, planned: bool = False) -> None:
        """It saw none."""

    def settled(self, planned: bool = False) -> dict[str, Any]:
        """The patch embedding with the language model's config in place of its name."""
        return {**self.spec, TOWER: fields_of(self._config(planned))}

    def check_files(self) -> None:
        """Raise CheckpointError if it has no files. Its weights are looked at with those of the model."""
        try:
            iterate_weights(self.name, shapes_only=True)
        except CheckpointError as error:
            raise CheckpointError(f"{KEY}: {error}") from error

    def weights(self, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Those of its first layers and of its last norm, one after another, under the names of the model."""
        with torch.device("meta"):
            wanted = build_llm_tower(first_layers(self._config(), self.spec.get("layers"))).state_dict().keys()
        for name, value in iterate_weights(self.name, shapes_only):
            if (own := name.removeprefix("language_model.model.")) in wanted:
                yield _PREFIX + own, value

    def _config(self, planned: bool = False) -> PreTrainedConfig:
        if planned and (known := known_decoder(self.name)):
            return known
        try:
            fields = PreTrainedConfig.get_config_dict(self.name)[0]
        except OSError as error:
            raise not_found(KEY, self.name, "language model that can be loaded", error) from error
        try:
            return llm_config(fields)
        except ConfigError as error:
            raise CheckpointError(f"{KEY}: {self.name}: {error}") from error


def beside_tower(patch_embedding: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What a patch embedding has besides its tower."""
    for name, value in patch_embedding.state_dict(prefix="patch_embedding.").items():
        if not name.startswith(_PREFIX):
            yield name, value


def without_tower(build: Callable[[], TowerPatchEmbedding]) -> TowerPatchEmbedding:
    """A patch embedding whose tower takes no memory, as its weights will be read; the rest is drawn."""
    with parameters_on_meta():
        part = build()
    for place, module in part.named_modules():
        if f"{place}.".startswith(f"{TOWER}."):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="cpu")))
    part.reset_beside()
    return part


def check_same_tower(config: EveConfig, source: EveConfig, init_from: str) -> None:
    """Raise ConfigError if a model with a tower would go on with another one, or with pixels of another kind."""
    both = [one.patch_embedding for one in (source, config)]
    if not all(map(has_tower, both)):
        return
    if lines := differences(*both):
        raise ConfigError(f"{KEY}: {init_from!r} has another tower ({'; '.join(lines[:6])})")
    check_pixels(config, (source.image_mean, source.image_std), f"that of {init_from!r}")


def check_pixels(config: EveConfig, pixels: Sequence[Sequence[float]], what: str) -> None:
    """Raise ConfigError if a model normalises its pixels in another way than its vision tower was trained with."""
    for key, wanted in zip(("image_mean", "image_std"), pixels, strict=True):
        found = getattr(config, key)
        if not all(math.isclose(one, other, abs_tol=1e-6) for one, other in zip(found, wanted, strict=True)):
            raise ConfigError(
                f"model.{key} is {list(found)}, but the tower, {what}, was trained with {list(wanted)}: set it to this"
            )
