"""What a model may become when it goes on, and what becomes of the weights that are there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor

from lit_eve.errors import ConfigError
from lit_eve.models import POSITIONS, EveConfig, EveForConditionalGeneration
from lit_eve.models.checkpoints.merging import has_adapters, merges_of
from lit_eve.models.decoders import DECODER_KINDS
from lit_eve.models.decoders.lora import lora_drawn, lora_started

_PREFIX = "language_model."


def is_dense(source: EveConfig | None) -> bool:
    """Whether a kind of decoder may still be built into what is there: a model of this config, or a plain language model."""
    return source is None or source.decoder_kind["name"] == "dense"


def is_merged(source: EveConfig, config: EveConfig) -> bool:
    """Whether adapters of ``source`` are added to the weights: those of a stage always, those of a kind if it is dense now."""
    return source.lora is not None or (has_adapters(source) and config.decoder_kind["name"] == "dense")


def check_growth(name: str, source: EveConfig, config: EveConfig) -> None:
    """A dense decoder may become any other, adapters may be merged, and positions changed that have no weights.

    Args:
        name: of the model that is there, for error messages.
        source: its config.
        config: what it is to become.

    Raises:
        ConfigError: its weights have no place there.
    """
    _check_kind(name, source, config)
    found, wanted = source.positions["name"], config.positions["name"]
    POSITIONS.require(found, source.imports.get("positions"))
    if found != wanted and POSITIONS[found].adds_weights:
        raise ConfigError(
            f"model.positions: {name!r} has weights for positions {found!r}, and there is no place for them with {wanted!r}, "
            "which this asks for"
        )


def _check_kind(name: str, source: EveConfig, config: EveConfig) -> None:
    found, wanted = source.decoder_kind, config.decoder_kind
    if found["name"] == "dense" or found == wanted:
        return
    DECODER_KINDS.require(found["name"], source.imports.get("decoder_kind"))
    if DECODER_KINDS.build(found) == DECODER_KINDS.build(wanted):
        return
    try:
        merges_of(source)
        if wanted["name"] != "dense":
            raise ConfigError("merge it in a stage of its own first (decoder_kind: {name: dense})")
    except ConfigError as error:
        raise ConfigError(
            f"model.decoder_kind: {name!r} has the weights of {found}, and this asks for {wanted}: {error}"
        ) from error


@dataclass(frozen=True)
class Growth:
    """Weights of a model that are made of others, or new.

    Args:
        model: what is built, on any device.
        source: the config of the model that is there; None: a plain language model.
    """

    model: EveForConditionalGeneration
    source: EveConfig | None

    @cached_property
    def _gets_positions(self) -> bool:
        return self.model.positions.adds_weights and not (
            self.source is not None and POSITIONS[self.source.positions["name"]].adds_weights
        )

    @property
    def copies(self) -> dict[str, str]:
        """Names of weights that begin as a copy of another, whose name follows."""
        if not is_dense(self.source):
            return {}
        copies = self.model.decoder_kind.copies(self.model.language_model)
        return {_PREFIX + new: _PREFIX + old for new, old in copies.items()}

    def drawn(self) -> Iterator[tuple[str, Tensor]]:
        """New weights, drawn from the beginning of the seed: the same in all processes."""
        language_model, drawn = self.model.language_model, []
        if is_dense(self.source):
            drawn.append(self.model.decoder_kind.drawn(language_model))
        if self._gets_positions:
            drawn.append(self.model.positions.drawn(language_model))
        drawn.append(lora_drawn(language_model))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            for name, tensor in chain.from_iterable(drawn):
                yield _PREFIX + name, tensor

    def become(self, stored: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Weights that are there, under the names that they get, and others that begin as something of them."""
        return lora_started(self._without_lora(stored), self.model.language_model, _PREFIX)

    def _without_lora(self, stored: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stored:
            if not name.startswith(_PREFIX):
                yield name, tensor
                continue
            own = name.removeprefix(_PREFIX)
            if is_dense(self.source):
                own = self.model.decoder_kind.name_of(own)
            yield _PREFIX + own, tensor
            if self._gets_positions:
                for new, begun in self.model.positions.begins(self.model.language_model, own, tensor):
                    yield _PREFIX + new, begun
