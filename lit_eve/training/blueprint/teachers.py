"""The teacher of a recipe: a folder or hub name, and what is asked of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

from lit_eve.data.features import TeacherFeatures
from lit_eve.losses import AbsentTeacher, FrozenTeacher, load_teacher
from lit_eve.models import EveConfig
from lit_eve.models.checkpoints.towers import empty_tower, tower_weights
from lit_eve.processing import TeacherGrid
from lit_eve.training.blueprint.encoders import NamedEncoder
from lit_eve.vision_towers import fields_of

KEY = "model.teacher"


@dataclass(frozen=True)
class NamedTeacher(NamedEncoder):
    """A teacher by name.

    Args:
        name: folder or hub name.
        config: of the student, which says layer and image size.
        is_absent: its features are in the shards; it is not loaded.
    """

    key = KEY

    config: EveConfig
    is_absent: bool = False

    @property
    def grid(self) -> TeacherGrid:
        """The patches of its squares."""
        tower, pixels = self.read()
        return TeacherGrid(self.config.teacher_image_size or tower.image_size, tower.patch_size, pixels.mean)

    def empty(self, planned: bool = False) -> FrozenTeacher:
        """The teacher without weights; to be called where new tensors are on the meta device."""
        tower, pixels = self.read(planned)
        sizes = self.config.teacher_layer, self.config.teacher_image_size, pixels
        return AbsentTeacher(tower, *sizes) if self.is_absent else FrozenTeacher(empty_tower(tower, self.name, KEY), *sizes)

    def load(self, dtype: torch.dtype) -> FrozenTeacher:
        """The teacher with its weights, or without, where it is absent."""
        sizes = self.config.teacher_layer, self.config.teacher_image_size
        return self.empty() if self.is_absent else load_teacher(self.name, *sizes, key=KEY, dtype=dtype)

    def features(self, states: set[int]) -> TeacherFeatures:
        """Its hidden states as files of features name them; all weights are read, for their fingerprint."""
        tower, pixels = self.read()
        facts: dict[str, Any] = {
            "weights": self._fingerprint(),
            "config": fields_of(tower),
            "image_size": self.grid.image_size,
            "normalisation": pixels,
            "geometry": self.config.image_geometry.to_dict(),
        }
        return TeacherFeatures(facts, tuple(sorted(states)), self.grid.side**2, tower.hidden_size)

    def _fingerprint(self) -> str:
        """The same for the same weights, in whatever files they lie."""
        digest = hashlib.sha256()
        weights = dict(tower_weights(self.name, empty_tower(self.read()[0], self.name, KEY), KEY))
        for name in sorted(weights):
            value = weights[name].contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()
