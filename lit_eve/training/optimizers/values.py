"""Values of a YAML that an optimizer takes; what cannot be is named by its key."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from lit_eve.errors import ConfigError


def number(key: str, value: Any, below: float = math.inf) -> float:
    """A number of at least 0.

    Raises:
        ConfigError: it is none, or too large.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
        limit = f" and below {below:g}" if below < math.inf else ""
        raise ConfigError(f"{key} must be a number of at least 0{limit}, got {value!r}")
    return float(value)


def numbers(key: str, values: Any, count: int) -> tuple[float, ...]:
    """``count`` numbers of either sign.

    Raises:
        ConfigError: they are not.
    """
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == count
    if not is_list or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise ConfigError(f"{key} must be {count} numbers, got {values!r}")
    return tuple(map(float, values))


def betas_of(values: Any) -> tuple[float, ...]:
    """AdamW's two coefficients.

    Raises:
        ConfigError: they are not two numbers from 0 to below 1.
    """
    return tuple(number("betas", value, below=1.0) for value in numbers("betas", values, 2))


def choice(key: str, value: Any, known: Collection[str]) -> str:
    """One of several words.

    Raises:
        ConfigError: it is none of them.
    """
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"there is no {key} {value!r}; known: {', '.join(known)}")
    return value
