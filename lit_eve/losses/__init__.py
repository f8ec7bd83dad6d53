"""The two training losses: next-token prediction on supervised positions, and patch alignment to a frozen teacher.

They know tensors and small modules only, no model; the model's forward calls them.
"""

from lit_eve.losses.alignment import ALIGNERS, LayerwiseAligner, patch_alignment_loss
from lit_eve.losses.next_token import NextTokenLoss, next_token_loss, target_positions_of
from lit_eve.losses.teacher import FrozenTeacher, load_teacher
from lit_eve.losses.terms import Term, weighted_sum

__all__ = [
    "ALIGNERS",
    "FrozenTeacher",
    "LayerwiseAligner",
    "NextTokenLoss",
    "Term",
    "load_teacher",
    "next_token_loss",
    "patch_alignment_loss",
    "target_positions_of",
    "weighted_sum",
]
