"""Supervisions: losses at image tokens that exist in training alone, one file each.

``base`` says what a supervision is, ``entries`` reads those of a config, ``weights`` their weights, ``supervisor`` runs them.
"""

from lit_eve.models.supervision import (  # noqa: F401 - which registers them
    distillation,
    masked_patches,
    next_patch,
    patch_alignment,
    trained_teacher,
)
from lit_eve.models.supervision.base import SUPERVISIONS, ImageBatch, Supervision
from lit_eve.models.supervision.entries import build_supervision, check_entries, entries_of, needs_teacher, without_weight
from lit_eve.models.supervision.supervisor import Supervisor
from lit_eve.models.supervision.weights import Weight, is_schedule, share_on, weight_at

__all__ = [
    "SUPERVISIONS",
    "ImageBatch",
    "Supervision",
    "Supervisor",
    "Weight",
    "build_supervision",
    "check_entries",
    "entries_of",
    "is_schedule",
    "needs_teacher",
    "share_on",
    "weight_at",
    "without_weight",
]
