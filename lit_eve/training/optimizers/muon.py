"""Muon for matrices and AdamW for the rest, as one optimizer.

Sources: Keller Jordan, kellerjordan.github.io/posts/muon; "Muon is Scalable for LLM Training" (arXiv 2502.16982). The update of
a matrix is that of `torch.optim.Muon`, within rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from lit_eve.errors import ConfigError
from lit_eve.training.optimizers.newton_schulz import COEFFICIENTS, orthogonalize, quick_dtype
from lit_eve.training.optimizers.parameters import Trained, parameter_groups
from lit_eve.training.optimizers.registry import OPTIMIZERS
from lit_eve.training.optimizers.shards import RowShards
from lit_eve.training.optimizers.values import betas_of, choice, number, numbers

BATCH = 2**26
"""Elements of matrices that are orthogonalised at a time, at least one matrix: a bound of the memory that a step takes for a
moment. A matrix of such a size keeps a GPU busy by itself."""

ADJUST_LR: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
"""Factor of the learning rate of a matrix."""

NS_DTYPES = {"auto": None, "bfloat16": torch.bfloat16, "float32": torch.float32}


@OPTIMIZERS.register("muon")
class Muon(Optimizer):
    """Momentum whose matrices are orthogonalised before they are added to the weights; AdamW where that makes no sense.

    Muon takes the weights of linear layers. AdamW takes the rest:

    - vectors: norms, biases, learned tokens, and matrices of a single row or column;
    - embedding tables and heads, tied or not, as upstream: their rows are words, of which a step is about a few;
    - parameters of more than two dimensions, such as kernels of convolutions and stacks of experts: they are no matrix;
    - two-dimensional parameters that are no weight of a linear layer, such as learned queries.

    A weight is orthogonalised as it is stored: all heads of a projection together, and what a model stores in one weight (keys
    and values of EVE's patch embedding, the fused projections of some decoders) as one matrix.

    Args:
        parameters: what it trains.
        fused: one kernel per group of AdamW.
        momentum: coefficient of the running average of the gradient.
        nesterov: look ahead by one step.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: of the quintic of an iteration.
        ns_dtype: type to iterate in: "bfloat16", "float32", or "auto", which is bfloat16 as upstream, but float32 on a CPU that
            has no quick product of matrices in bfloat16.
        adjust_lr_fn: by how much the learning rate of an R x C matrix is multiplied: "match_rms_adamw" by 0.2 sqrt(max(R, C)),
            which makes the step about as long as one of AdamW, so that a recipe's rate serves both; "original" by
            sqrt(max(1, R / C)).
        weight_decay: of matrices, in both parts; vectors and embedding tables have none.
        adamw_lr_factor: learning rate of the AdamW part, as a multiple of the recipe's.
        betas, eps: of the AdamW part.

    Sharded matrices (FSDP2) are put together and orthogonalised as a whole, each by one of the processes that share it.

    Raises:
        ConfigError: a value that cannot be.
    """

    def __init__(
        self,
        parameters: Sequence[Trained],
        fused: bool = True,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_coefficients: Sequence[float] = COEFFICIENTS,
        ns_dtype: str = "auto",
        adjust_lr_fn: str = "match_rms_adamw",
        weight_decay: float = 0.0,
        adamw_lr_factor: float = 1.0,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        if not isinstance(nesterov, bool):
            raise ConfigError(f"nesterov must be true or false, got {nesterov!r}")
        if not isinstance(ns_steps, int) or not 1 <= ns_steps < 100:
            raise ConfigError(f"ns_steps must be a whole number from 1 to 99, got {ns_steps!r}")
        settings = {
            "momentum": number("momentum", momentum, below=1.0),
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "ns_coefficients": numbers("ns_coefficients", ns_coefficients, 3),
            "ns_dtype": choice("ns_dtype", ns_dtype, NS_DTYPES),
            "adjust_lr_fn": choice("adjust_lr_fn", adjust_lr_fn, ADJUST_LR),
        }
        decay, factor = number("weight_decay", weight_decay), number("adamw_lr_factor", adamw_lr_factor)
        matrices = [one for one in parameters if one.is_matrix]
        self._shards = RowShards.of([one.parameter for one in matrices])
        rest = [replace(one, lr=one.lr * factor, label=f"{one.label}/adamw") for one in parameters if not one.is_matrix]
        adamw_groups = parameter_groups(rest, decay)
        super().__init__([*parameter_groups(matrices, decay, **settings), *adamw_groups], {})
        # Updates those of this optimizer's own groups that are not Muon's, on this optimizer's own states.
        arguments = {"betas": betas_of(betas), "eps": number("eps", eps), "fused": fused}
        self._adamw = AdamW(adamw_groups, **arguments) if rest else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both parts."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if _is_muon(group):
                for batch in _batches(group["params"], 1 if self._shards is None else self._shards.size):
                    self._update(batch, group)
        if self._adamw is not None:
            # Anew in every step: a loaded state is another object.
            self._adamw.state = self.state
            self._adamw.param_groups = [group for group in self.param_groups if not _is_muon(group)]
            self._adamw.step()
        return loss

    def _update(self, batch: list[nn.Parameter], group: dict[str, Any]) -> None:
        """A step of matrices of one shape."""
        total, columns = batch[0].shape  # R, C of the whole matrix
        weights = [_own_rows(parameter) for parameter in batch]
        gradients = [_own_rows(parameter.grad) for parameter in batch]
        momenta = [_own_rows(self._momentum(parameter)) for parameter in batch]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        dtype = NS_DTYPES[group["ns_dtype"]] or quick_dtype(weights[0].device.type)
        rows = torch.stack([x.to(dtype) for x in ahead])  # (K, r, C), r = R on one device
        iterate = partial(orthogonalize, steps=group["ns_steps"], coefficients=group["ns_coefficients"])
        directions = iterate(rows) if self._shards is None else self._shards.apply(iterate, rows, total)
        factor = ADJUST_LR[group["adjust_lr_fn"]](total, columns)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, list(directions), alpha=-group["lr"] * factor)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        return state["momentum_buffer"]


def _is_muon(group: dict[str, Any]) -> bool:
    return "ns_steps" in group


def _own_rows(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds, in place; a whole tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _batches(parameters: Sequence[nn.Parameter], processes: int) -> Iterator[list[nn.Parameter]]:
    """Those that have gradients, by shape, as many at a time as may be on each process."""
    shape = lambda parameter: tuple(parameter.shape)  # noqa: E731
    present = sorted((parameter for parameter in parameters if parameter.grad is not None), key=shape)
    for (rows, columns), same in groupby(present, shape):
        alike, size = list(same), max(1, BATCH // (rows * columns)) * processes
        yield from (alike[start : start + size] for start in range(0, len(alike), size))
