"""Numbers that must be the same but for rounding, and the sentence that says by how much they are not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

LOSS, LOGITS, GRADIENT = 1e-5, 1e-4, 1e-4
"""Relative to the largest number that is compared: what rounding in float32 may leave between two ways of computing."""
_ABSOLUTE = 1e-6


def compare(found: Tensor, expected: Tensor, what: str, bound: float) -> None:
    """Raise AssertionError ``what`` unless two tensors are the same but for rounding.

    Args:
        found, expected: of one shape.
        what: a sentence without a full stop.
        bound: largest difference, relative to the largest number of ``expected`` (or absolute, where that is below 1e-2).
    """
    assert found.shape == expected.shape, f"{what}: the shape is {tuple(found.shape)}, not {tuple(expected.shape)}"
    if not expected.numel():
        return
    found, expected = found.detach().double(), expected.detach().double()
    difference, largest = float((found - expected).abs().max()), float(expected.abs().max())
    assert difference <= bound * largest + _ABSOLUTE, (
        f"{what}: the difference is {difference:.2g} among numbers up to {largest:.2g}; rounding leaves at most "
        f"{bound * largest + _ABSOLUTE:.2g}"
    )


def compare_named(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, bound: float) -> None:
    """:func:`compare` for tensors by name, of which ``{name}`` in ``what`` tells."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        assert name in found and name in expected, (
            f"{what.format(name=name)}: it is there only {'after' if name in found else 'before'}"
        )
        compare(found[name], expected[name], what.format(name=name), bound)


def finite(values: Mapping[str, Tensor], what: str) -> None:
    """Raise AssertionError ``what`` (with ``{name}``) for a tensor that holds an infinity or no number."""
    for name, value in values.items():
        assert torch.isfinite(value).all(), what.format(name=name)
