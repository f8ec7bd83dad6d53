"""Distillation layer by layer: VoRA's loss.

Notation: M teacher patches inside the images, k x k image tokens of each, K teacher width, n hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lit_eve.errors import ConfigError
from lit_eve.losses import LayerwiseHeads, distillation_loss
from lit_eve.models.supervision.base import SUPERVISIONS, ImageBatch, Supervision


@SUPERVISIONS.register("distillation")
class Distillation(Supervision):
    """Each hidden state predicts the teacher's of the same number, up to ``teacher_layer`` (VoRA, arXiv 2503.20680)."""

    def __init__(self, hidden_size: int, num_layers: int, teacher_width: int, teacher_depth: int) -> None:
        if teacher_depth > num_layers:
            raise ConfigError(
                f"supervision 'distillation': the teacher's hidden state {teacher_depth} has no counterpart in a decoder of "
                f"{num_layers} layers; choose a smaller teacher_layer"
            )
        self.taps = self.teacher_states = tuple(range(teacher_depth + 1))
        self.head = LayerwiseHeads(hidden_size, teacher_width, len(self.taps))

    def positions(self, images: ImageBatch) -> Tensor:
        """(M, k * k): the image tokens of each teacher patch."""
        return images.cells.positions

    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """1 - cosine, the mean over the hidden states."""
        cells = images.cells
        targets = [state.flatten(0, 1)[cells.teacher_index] for state in teacher]  # n times (M, K)
        return distillation_loss(self.head(hidden), targets, cells.image_of_cell, images.num_images)
