"""Random numbers that are a function of integers: whoever has the same integers draws the same, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def draw(*keys: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), of 24 bits: float32, of the shape that the keys broadcast to.

    Args:
        keys: int64, at least 0.
    """
    state = torch.zeros_like(keys[0])
    for key in keys:
        for word in (key & _MASK, key >> 32):
            state = _mix((state ^ word) + 0x9E3779B9 & _MASK)
    return (state >> 8).float() / 2**24


def _mix(x: Tensor) -> Tensor:
    """A permutation of 32-bit numbers that leaves no pattern (``lowbias32`` of github.com/skeeto/hash-prospector)."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & _MASK
    x = (x ^ (x >> 15)) * 0x846CA68B & _MASK
    return x ^ (x >> 16)
