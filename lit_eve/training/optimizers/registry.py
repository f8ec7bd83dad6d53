"""The registry of optimizers; what is wrong with a choice is said before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lit_eve.errors import ConfigError
from lit_eve.registry import Registry
from lit_eve.training.optimizers.parameters import Trained
from lit_eve.training.optimizers.states import match_names

OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
"""Built with the context ``parameters`` (a sequence of :class:`Trained`) and ``fused`` (whether kernels that update a whole
group at once may be used). An own optimizer makes its groups with :func:`parameter_groups`."""

CONTEXT = ("parameters", "fused")


def check_optimizer(spec: Mapping[str, Any]) -> None:
    """Raise ConfigError unless ``spec`` names an optimizer, its arguments exist, and an optimizer can be made with them."""
    OPTIMIZERS.check(spec, CONTEXT)
    matrix, vector = (nn.Parameter(torch.zeros(shape)) for shape in ((2, 2), (2,)))  # draws no random number
    build_optimizer(
        spec,
        [Trained("matrix", matrix, 1.0, "stage", True, True), Trained("vector", vector, 1.0, "stage", False, False)],
    )


def build_optimizer(spec: Mapping[str, Any], parameters: Sequence[Trained], fused: bool = True) -> Optimizer:
    """The optimizer that ``spec`` names, over ``parameters``; loaded states are matched by the names of parameters.

    Args:
        spec: ``{"name": ..., **arguments}``.
        parameters: what it trains.
        fused: one kernel per group. Such an optimizer takes back the factor of a gradient scaler (precision 16-mixed) inside
            that kernel, too late for gradients that are clipped before.

    Raises:
        ConfigError: an unknown name or argument, or a value that the optimizer does not take.
    """
    try:
        optimizer = OPTIMIZERS.build(spec, parameters=parameters, fused=fused)
    except (TypeError, ValueError) as error:  # of torch; a ConfigError is a ValueError too
        raise error if isinstance(error, ConfigError) else ConfigError(f"optimizer {spec['name']!r}: {error}") from error
    names = [name for group in optimizer.param_groups for name in group.get("param_names", ())]
    if sorted(names) != sorted(one.name for one in parameters) or not all("label" in g for g in optimizer.param_groups):
        raise ConfigError(
            f"optimizer {spec['name']!r} must hold each parameter once, with its name and label: make its groups with "
            "parameter_groups"
        )
    optimizer.register_load_state_dict_pre_hook(match_names)
    return optimizer
