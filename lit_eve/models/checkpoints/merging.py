"""Adapters in a decoder are added to the weights that they adapt; what is left is a dense decoder that computes the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from torch import Tensor

from lit_eve.errors import CheckpointError
from lit_eve.models.checkpoints.weights import iterate_weights
from lit_eve.models.config import EveConfig
from lit_eve.models.decoders import DECODER_KINDS, Merge
from lit_eve.models.decoders.lora import lora_merges

_PREFIX = "language_model."


def has_adapters(config: EveConfig) -> bool:
    """Whether the decoder has more than its own weights, which may be merged into them."""
    return config.decoder_kind["name"] != "dense" or config.lora is not None


def merged_config(config: EveConfig) -> EveConfig:
    """The config of the merged model."""
    config = copy.deepcopy(config)
    config.decoder_kind, config.lora = {"name": "dense"}, None
    config.imports.pop("decoder_kind", None)
    return config


def merges_of(config: EveConfig, names: Iterable[str] = ()) -> dict[str, Merge]:
    """How the weights of the merged language model are made of those of ``names``, which are its weights now.

    Raises:
        ConfigError: this decoder cannot be merged.
    """
    if config.lora is not None:
        return lora_merges(names, config.lora)  # beside a dense decoder
    DECODER_KINDS.require(config.decoder_kind["name"], config.imports.get("decoder_kind"))
    return DECODER_KINDS.build(config.decoder_kind).merges(names)


def iterate_merged(path: str | Path, config: EveConfig, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
    """:func:`~lit_eve.models.checkpoints.weights.iterate_weights` of the merged model.

    Args:
        path: of a model with adapters.
        config: its config, with the adapters.
        shapes_only: as there.

    Raises:
        CheckpointError: as there, or weights of an adapter are missing.
        ConfigError: this decoder cannot be merged.
    """
    names = [name for name, _ in iterate_weights(path, shapes_only=True) if name.startswith(_PREFIX)]
    merges = merges_of(config, [name.removeprefix(_PREFIX) for name in names])
    for target, one in merges.items():
        if missing := [source for source in one.sources if _PREFIX + source not in names]:
            raise CheckpointError(f"{path}: {target} cannot be merged without {missing[0]}")
    with_prefix = {
        _PREFIX + target: Merge(tuple(_PREFIX + source for source in one.sources), one.compute)
        for target, one in merges.items()
    }
    return merged(iterate_weights(path, shapes_only), with_prefix)


def merged(stored: Iterable[tuple[str, Tensor]], merges: Mapping[str, Merge]) -> Iterator[tuple[str, Tensor]]:
    """Make weights of others as soon as these have come; all that no merge names comes as it is."""
    target_of = {source: target for target, one in merges.items() for source in one.sources}
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored:
        if name not in target_of:
            yield name, tensor
            continue
        target = target_of[name]
        one, parts = merges[target], waiting.setdefault(target, {})
        parts[name] = tensor
        if len(parts) == len(one.sources):
            del waiting[target]
            yield target, one.compute(*(parts[source] for source in one.sources))
