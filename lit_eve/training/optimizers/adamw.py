"""AdamW, torch's own."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import AdamW

from lit_eve.training.optimizers.parameters import Trained, parameter_groups
from lit_eve.training.optimizers.registry import OPTIMIZERS
from lit_eve.training.optimizers.values import betas_of, number


@OPTIMIZERS.register("adamw")
def adamw(
    parameters: Sequence[Trained],
    fused: bool = True,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> AdamW:
    """AdamW (arXiv 1711.05101).

    Args:
        parameters: what it trains.
        fused: one kernel per group.
        betas: coefficients of the running averages of the gradient and of its square.
        eps: term in the denominator.
        weight_decay: of matrices; vectors and embedding tables have none.

    Raises:
        ConfigError: a value that cannot be.
    """
    groups = parameter_groups(parameters, number("weight_decay", weight_decay))
    return AdamW(groups, betas=betas_of(betas), eps=number("eps", eps), fused=fused)
