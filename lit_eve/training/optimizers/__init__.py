"""Optimizers by name (``model.optimizer``), states matched by name, and the schedule of the learning rates."""

from lit_eve.training.optimizers.adamw import adamw
from lit_eve.training.optimizers.muon import Muon
from lit_eve.training.optimizers.parameters import Trained, parameter_groups, trained_parameters
from lit_eve.training.optimizers.registry import OPTIMIZERS, build_optimizer, check_optimizer
from lit_eve.training.optimizers.schedule import warmup_cosine, warmup_steps, warmup_then_cosine

__all__ = [
    "OPTIMIZERS",
    "Muon",
    "Trained",
    "adamw",
    "build_optimizer",
    "check_optimizer",
    "parameter_groups",
    "trained_parameters",
    "warmup_cosine",
    "warmup_steps",
    "warmup_then_cosine",
]
