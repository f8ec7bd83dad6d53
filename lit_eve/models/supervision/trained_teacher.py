"""A teacher that trains along: what EVE tried, and left out.

Notation: N images, C teacher image size, M teacher patches inside the images, K teacher width.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lit_eve.losses import FrozenTeacher
from lit_eve.models.supervision.base import SUPERVISIONS, ImageBatch
from lit_eve.models.supervision.patch_alignment import PatchAlignment
from lit_eve.processing.images import normalize_pixels
from lit_eve.vision_towers import patch_states


@SUPERVISIONS.register("trained_teacher")
class TrainedTeacher(PatchAlignment):
    """Patch alignment to a copy of the teacher that trains with the model.

    Source: EVE (arXiv 2406.11832, section 4.3), which reports that its model collapses if the CLIP trains in all stages; it
    gives no settings. Both sides can lower this loss by saying the same of every patch, so watch the caption loss.

    The copy starts as ``model.teacher``. It is saved with the aligner in the head's file, and goes on from there where
    ``init_from`` has one. Its weights are ``trained_teacher.tower.*``: a rule of the stage can give them a learning rate. As
    every teacher it stays in eval mode: a DINOv3 in training mode answers the same image differently each time.

    Args:
        aligner: ``{"name": ..., **arguments}`` of a registered aligner.
    """

    reads_teacher_pixels = True

    def __init__(
        self, hidden_size: int, num_layers: int, teacher: FrozenTeacher, aligner: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(hidden_size, num_layers, teacher.width, teacher.depth, aligner)
        self.teacher_states = ()
        self.mean, self.std = teacher.grid.mean, teacher.std
        tower = copy.deepcopy(teacher.backbone).requires_grad_(True)
        self.head = nn.ModuleDict({"aligner": self.head, "tower": tower})

    @property
    def _aligner(self) -> nn.Module:
        return self.head["aligner"]

    def loss(self, images: ImageBatch, hidden: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """1 - cosine between the aligner's prediction and the copy; gradients go to both."""
        tower = self.head["tower"].eval()
        if not images.num_images:
            return sum(weight.flatten()[:0].float().sum() for weight in self.head.parameters())
        pixels = normalize_pixels(images.teacher_pixels, self.mean, self.std, tower.dtype)  # (N, 3, C, C)
        return super().loss(images, hidden, patch_states(tower, pixels)[-1:])
