"""Where the weights of a model come from: files that are there, copies of what is in them, and new ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_eve.losses import FrozenTeacher
from lit_eve.models import PATCH_EMBEDDINGS, PROJECTORS, EveConfig, EveForConditionalGeneration
from lit_eve.models.checkpoints.heads import heads_in
from lit_eve.models.checkpoints.merging import iterate_merged
from lit_eve.models.checkpoints.weights import iterate_weights
from lit_eve.models.patch_embeddings import has_tower
from lit_eve.models.supervision import build_supervision, entries_of, without_weight
from lit_eve.training.blueprint.growth import Growth, is_merged
from lit_eve.training.blueprint.towers import beside_tower, without_tower

if TYPE_CHECKING:
    from lit_eve.training.blueprint.blueprint import Blueprint


@dataclass(frozen=True)
class WeightSources:
    """The sources for what a blueprint builds."""

    blueprint: Blueprint

    def parts(self, teacher: FrozenTeacher | None) -> dict[str, nn.Module]:
        """The parts around the decoder with random weights, on the CPU; with those of the teacher, where a head begins as it.

        They are drawn from the beginning of the seed, whatever this process has drawn before: they are the same in all.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            return self._drawn_parts(teacher)

    @property
    def may_be_new(self) -> list[str]:
        """The parts whose weights are drawn where there are none."""
        around = ["patch_embedding", "projector"] if self.blueprint.init_from is None else []
        return [*around, *self._entries]

    def of(self, model: EveForConditionalGeneration, patch_embedding: nn.Module, shapes_only: bool = False) -> dict[str, Any]:
        """Those that are there, copies of them, and new ones: of the decoder, and beside a vision tower that is read.

        Args:
            model: what is built, on any device.
            patch_embedding: of :meth:`parts`.
            shapes_only: tensors need no values.
        """
        growth = Growth(model, self._source)
        beside = beside_tower(patch_embedding) if self.blueprint.tower is not None and self._source is None else ()
        stored = growth.become(self._stored(shapes_only))
        return {"stored": stored, "copies": growth.copies, "drawn": chain(beside, growth.drawn())}

    @property
    def _source(self) -> EveConfig | None:
        return None if self.blueprint.source is None else self.blueprint.source[0]

    @property
    def _entries(self) -> dict[str, dict[str, Any]]:
        return entries_of(self.blueprint.config, self.blueprint.teacher is not None)

    def _drawn_parts(self, teacher: FrozenTeacher | None) -> dict[str, nn.Module]:
        config = self.blueprint.config
        hidden_size = config.text_config.hidden_size
        context = {"geometry": config.image_geometry, "hidden_size": hidden_size}
        build = lambda: PATCH_EMBEDDINGS.build(config.patch_embedding, **context)  # noqa: E731
        is_read = self.blueprint.tower is not None or (self._source and has_tower(config.patch_embedding))
        patch_embedding = without_tower(build) if is_read else build()
        projector = PROJECTORS.build(config.projector, input_size=patch_embedding.width, output_size=hidden_size)
        parts = {"patch_embedding": patch_embedding, "projector": projector}
        return parts | {part: build_supervision(entry, config, teacher).head for part, entry in self._entries.items()}

    def _stored(self, shapes_only: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of the weights that are there, without heads that are not wanted or are others here."""
        blueprint, source = self.blueprint, self._source
        if source is None:
            yield from iterate_weights(blueprint.decoder, shapes_only)
            if blueprint.tower is not None:
                yield from blueprint.tower.weights(shapes_only)
            return
        there = entries_of(source, with_teacher=True) if source.supervision is None else entries_of(source, False)
        same = lambda part, entry: part in there and without_weight(there[part]) == without_weight(entry)  # noqa: E731
        wanted = {part for part, entry in self._entries.items() if same(part, entry)}
        if source.aligner is None:
            wanted.discard("aligner")
        unwanted = tuple(f"{part}." for part in heads_in(source.supervision) if part not in wanted)
        if is_merged(source, blueprint.config):
            weights = iterate_merged(blueprint.init_from, source, shapes_only)
        else:
            weights = iterate_weights(blueprint.init_from, shapes_only)
        for name, tensor in weights:
            if not name.startswith(unwanted):
                yield name, tensor
