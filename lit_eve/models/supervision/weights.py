"""How much a supervision counts in the loss: a number, or a schedule over the run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isfinite
from typing import Any, TypeAlias

from lit_eve.errors import ConfigError

Weight: TypeAlias = float | Sequence[Sequence[float]]
"""A number, or points ``[part of the run, weight]`` with lines between them, constant before the first and behind the last."""


def is_schedule(weight: Weight) -> bool:
    """Whether it changes over the run."""
    return not isinstance(weight, int | float)


def weight_at(weight: Weight, progress: float) -> float:
    """The weight where ``progress`` of the run's optimizer steps are done, 0 to 1."""
    if not is_schedule(weight):
        return float(weight)
    if progress <= weight[0][0]:
        return float(weight[0][1])
    for (start, first), (stop, last) in pairwise(weight):
        if progress < stop:
            return first + (last - first) * (progress - start) / (stop - start)
    return float(weight[-1][1])


def share_on(*weights: Weight) -> float:
    """The part of a run, 0 to 1, in which not all of these are 0."""
    ends = sorted({0.0, 1.0, *(point[0] for weight in weights if is_schedule(weight) for point in weight)})
    on = lambda start, stop: any(weight_at(weight, (start + stop) / 2) for weight in weights)  # noqa: E731
    return sum(stop - start for start, stop in pairwise(ends) if on(start, stop))


def check_weight(name: str, weight: Any) -> None:
    """Raise ConfigError for what is no weight of the supervision ``name``."""
    if not isinstance(weight, list | tuple):
        if not _is_weight(weight):
            example = "or a schedule, as in [[0.0, 1.0], [0.5, 0.0]]"
            raise ConfigError(f"the weight of {name!r} must be a number of at least 0, got {weight!r} ({example})")
        return
    what = f"the weight of {name!r} must be points [part of the run, weight]"
    if len(weight) < 2 or not all(isinstance(point, list | tuple) and len(point) == 2 for point in weight):
        raise ConfigError(f"{what}, two or more, as in [[0.0, 1.0], [0.5, 0.0]], got {weight!r}")
    parts, weights = zip(*weight, strict=True)
    if not all(_is_weight(part) and part <= 1 for part in parts) or any(a >= b for a, b in pairwise(parts)):
        raise ConfigError(f"{what}: the parts must grow, between 0 and 1, got {list(parts)}")
    if not all(map(_is_weight, weights)) or not any(weights):
        raise ConfigError(f"{what}: the weights must be numbers of at least 0 and not all 0, got {list(weights)}")


def _is_weight(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and isfinite(value) and value >= 0
