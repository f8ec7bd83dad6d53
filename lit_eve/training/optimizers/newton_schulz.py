"""Orthogonalisation by Newton-Schulz iteration, of many matrices at a time.

Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io/posts/muon). The
arithmetic is that of `torch.optim.Muon`, which takes one matrix after the other: on one core of a CPU 10 ms for the 30 matrices
of the miniature EVE, here 5.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic a x + b x^3 + c x^5: as steep as possible at 0. Singular values end between 0.7 and 1.2, not at 1."""

_EPS = 1e-7


def orthogonalize(matrices: Tensor, steps: int = 5, coefficients: tuple[float, float, float] = COEFFICIENTS) -> Tensor:
    """About U V^T for each matrix U S V^T: (K, R, C) -> (K, R, C), in the type of ``matrices``; zeros stay zeros.

    Args:
        matrices: K matrices; in bfloat16 or float32.
        steps: iterations.
        coefficients: of the quintic.
    """
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # (K, r, s), r <= s: the Gram matrices are the smaller ones
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)  # singular values of at most 1
    for _ in range(steps):
        gram = x @ x.mT  # (K, r, r)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@cache
def quick_dtype(device: str) -> torch.dtype:
    """The type to iterate in: bfloat16, as upstream; float32 on a CPU that has no quick product of matrices in bfloat16."""
    if device != "cpu":
        return torch.bfloat16
    quick = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32
