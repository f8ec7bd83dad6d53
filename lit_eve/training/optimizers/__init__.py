"""Optimizers by name (``model.optimizer``), states matched by name, and the schedule of the learning rates."""

from lit_eve.training.optimizers import adamw, muon  # noqa: F401 - which registers them
from lit_eve.training.optimizers.parameters import Trained, parameter_groups, trained_parameters
from lit_eve.training.optimizers.registry import OPTIMIZERS, build_optimizer, check_optimizer
from lit_eve.training.optimizers.schedule import warmup_cosine, warmup_steps, warmup_then_cosine

__all__ = [
    "OPTIMIZERS",
    "Trained",
    "build_optimizer",
    "check_optimizer",
    "parameter_groups",
    "trained_parameters",
    "warmup_cosine",
    "warmup_steps",
    "warmup_then_cosine",
]
