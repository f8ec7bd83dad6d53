"""The training losses: next-token prediction on supervised positions, and the auxiliary ones at image tokens.

They know tensors and small modules only, no model; the model's forward calls them.
"""

from lit_eve.losses.alignment import ALIGNERS, LayerwiseAligner, patch_alignment_loss
from lit_eve.losses.distillation import LayerwiseHeads, distillation_loss
from lit_eve.losses.next_patch import next_patch_loss
from lit_eve.losses.next_token import NextTokenLoss, next_token_loss, target_positions_of
from lit_eve.losses.teacher import AbsentTeacher, FrozenTeacher, load_teacher
from lit_eve.losses.terms import Term, mean_of, weighted_sum

__all__ = [
    "ALIGNERS",
    "AbsentTeacher",
    "FrozenTeacher",
    "LayerwiseAligner",
    "LayerwiseHeads",
    "NextTokenLoss",
    "Term",
    "distillation_loss",
    "load_teacher",
    "mean_of",
    "next_patch_loss",
    "next_token_loss",
    "patch_alignment_loss",
    "target_positions_of",
    "weighted_sum",
]
