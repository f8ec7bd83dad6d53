"""Supervisions: losses at image tokens that exist in training alone, one file each.

``base`` says what a supervision is, ``entries`` reads those of a config, ``supervisor`` runs them.
"""

from lit_eve.models.supervision import distillation, next_patch, patch_alignment  # noqa: F401 - which registers them
from lit_eve.models.supervision.base import SUPERVISIONS, ImageBatch, Supervision
from lit_eve.models.supervision.entries import build_supervision, check_entries, entries_of, needs_teacher, without_weight
from lit_eve.models.supervision.supervisor import Supervisor

__all__ = [
    "SUPERVISIONS",
    "ImageBatch",
    "Supervision",
    "Supervisor",
    "build_supervision",
    "check_entries",
    "entries_of",
    "needs_teacher",
    "without_weight",
]
