"""Patch alignment: EVE v1's loss.

Notation: M teacher patches inside the images, k x k image tokens of each, K teacher width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_eve.errors import ConfigError
from lit_eve.losses import ALIGNERS, patch_alignment_loss
from lit_eve.models.supervision.base import SUPERVISIONS, ImageBatch, Supervision


@SUPERVISIONS.register("patch_alignment")
class PatchAlignment(Supervision):
    """An aligner maps hidden states to one of the teacher's (EVE, arXiv 2406.11832, section 3.2).

    Args:
        aligner: ``{"name": ..., **arguments}`` of a registered aligner.
    """

    term = "alignment_loss"

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        teacher_width: int,
        teacher_depth: int,
        aligner: Mapping[str, Any] | None = None,
    ) -> None:
        self.aligner = dict(aligner or {"name": "layerwise"})
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "teacher_width": teacher_width}
        self.head = ALIGNERS.build(self.aligner, **sizes)
        self.taps, self.teacher_states = tuple(self.head.taps), (teacher_depth,)
        self.width = teacher_width

    @classmethod
    def check_arguments(cls, aligner: Mapping[str, Any] | None = None) -> None:
        """Is there such an aligner?"""
        if aligner is not None:
            ALIGNERS.check(aligner, ("hidden_size", "num_layers", "teacher_width"))

    @property
    def _aligner(self) -> nn.Module:
        return self.head

    def positions(self, images: ImageBatch) -> Tensor:
        """(M, k * k): the image tokens of each teacher patch."""
        return images.cells.positions

    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """1 - cosine between the aligner's prediction and the teacher."""
        cells = images.cells
        predictions = self._aligner(list(hidden))  # (M, K)
        if predictions.shape != (shape := (len(cells.image_of_cell), self.width)):
            raise ConfigError(
                f"aligner {self.aligner['name']!r} returned the shape {tuple(predictions.shape)}, but the teacher's is {shape}"
            )
        targets = teacher[0].flatten(0, 1)[cells.teacher_index]  # (M, K)
        return patch_alignment_loss(predictions, targets, cells.image_of_cell, images.num_images)
