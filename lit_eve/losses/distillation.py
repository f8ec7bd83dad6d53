"""Distillation layer by layer: each hidden state of the decoder must predict the frozen teacher's of the same number.

Source: arXiv 2503.20680 (VoRA), section 3.3, and its code, class AuxVision. Notation: M teacher cells (patches of the teacher
inside the images), D decoder width, K teacher width, n hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_eve.losses.alignment import patch_alignment_loss


class LayerwiseHeads(nn.ModuleList):
    """An RMSNorm and a linear layer without bias for each hidden state.

    Args:
        hidden_size: D of the decoder.
        teacher_width: K.
        num_states: n.
    """

    def __init__(self, hidden_size: int, teacher_width: int, num_states: int) -> None:
        super().__init__(
            nn.Sequential(nn.RMSNorm(hidden_size, eps=1e-5), nn.Linear(hidden_size, teacher_width, bias=False))
            for _ in range(num_states)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Predict the teacher: n times (M, D) -> n times (M, K)."""
        return [head(feature) for head, feature in zip(self, features, strict=True)]


def distillation_loss(
    predictions: Sequence[Tensor], targets: Sequence[Tensor], image_of_cell: Tensor, num_images: int
) -> Tensor:
    """The mean of the states' :func:`~lit_eve.losses.patch_alignment_loss`: 0-dim float32, summed over the images.

    Args:
        predictions: n times (M, K).
        targets: n times (M, K).
        image_of_cell: (M,) int64, the image that a cell belongs to.
        num_images: N images of this batch.
    """
    losses = [patch_alignment_loss(*pair, image_of_cell, num_images) for pair in zip(predictions, targets, strict=True)]
    return torch.stack(losses).mean()
