"""Warm-up, then cosine."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_eve.errors import ConfigError


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float) -> float:
    """Factor of the peak rate at ``step`` (from 0): a line up to 1 over ``warmup`` steps, then a half cosine to ``floor``."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of warm-up: ``warmup`` itself, or its fraction of ``total`` (rounded up) if below 1."""
    return math.ceil(warmup * total) if warmup < 1 else int(warmup)


def warmup_then_cosine(optimizer: Optimizer, total: int, warmup: float, floor: float) -> LambdaLR:
    """The schedule of all groups of an optimizer.

    Args:
        optimizer: its groups have their peak rates.
        total: optimizer steps of the whole run.
        warmup: steps, or their fraction of ``total`` if below 1.
        floor: the learning rate at the end, as a fraction of the peak.

    Raises:
        ConfigError: the warm-up is longer than the run, or the run has no known length.
    """
    if not math.isfinite(total):
        raise ConfigError("the length of the run is unknown: set trainer.max_steps")
    steps = warmup_steps(warmup, total)
    if steps > total:
        raise ConfigError(f"warmup: {steps} steps are more than the {total} steps of the run")
    return LambdaLR(optimizer, partial(warmup_cosine, total=total, warmup=steps, floor=floor))
