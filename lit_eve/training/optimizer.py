"""AdamW over a stage's parameter groups, and warm-up then cosine as the schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from itertools import count, islice
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_eve.errors import CheckpointError, ConfigError


def parameter_groups(model: nn.Module, rates: Mapping[str, float | None], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for AdamW: one per learning rate, split where weight decay applies to some parameters only.

    Decay is for matrices: vectors (norms, biases, learned tokens) and embedding tables are left out. Each group
    carries the names of its parameters, so that optimizer states are saved with them.

    Args:
        model: its parameters are named as in ``rates``.
        rates: peak learning rate per name, None for a frozen parameter.
        weight_decay: AdamW's decay.

    Returns:
        Dicts with ``params`` (pairs of name and parameter), ``lr``, ``weight_decay`` and ``name`` ("4e-05").
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        lr = rates.get(name)
        if lr is None:
            continue
        decays = parameter.ndim >= 2 and 1 not in parameter.shape[:-1] and id(parameter) not in embeddings
        decay = weight_decay if decays else 0.0
        label = f"{lr:g}" + (" without decay" if weight_decay and not decay else "")
        group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "weight_decay": decay, "name": label})
        group["params"].append((name, parameter))
    return list(groups.values())


def warmup_cosine(step: int, *, total: int, warmup: int, floor: float) -> float:
    """Factor of the peak rate at ``step`` (from 0): a line up to 1 over ``warmup`` steps, then a half cosine to ``floor``."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_steps(warmup: float, total: int) -> int:
    """Steps of warm-up: ``warmup`` itself, or its fraction of ``total`` (rounded up) if below 1."""
    return math.ceil(warmup * total) if warmup < 1 else int(warmup)


def build_optimizer(
    groups: list[dict[str, Any]],
    total: int,
    warmup: float,
    floor: float,
    betas: tuple[float, float],
    eps: float,
    fused: bool = True,
) -> tuple[AdamW, LambdaLR]:
    """AdamW and its schedule, over groups from :func:`parameter_groups`.

    Args:
        groups: the parameter groups.
        total: optimizer steps of the whole run.
        warmup: steps, or their fraction of ``total`` if below 1.
        floor: the learning rate at the end, as a fraction of the peak.
        betas, eps: AdamW's.
        fused: one kernel per group. Such an optimizer takes back the factor of a gradient scaler (precision 16-mixed) inside
            that kernel, too late for gradients that are clipped before.

    Raises:
        ConfigError: the warm-up is longer than the run, or the run has no known length.
    """
    if not math.isfinite(total):
        raise ConfigError("the length of the run is unknown: set trainer.max_steps")
    steps = warmup_steps(warmup, total)
    if steps > total:
        raise ConfigError(f"warmup: {steps} steps are more than the {total} steps of the run")
    optimizer = AdamW(groups, betas=betas, eps=eps, fused=fused)
    optimizer.register_load_state_dict_pre_hook(_match_names)
    return optimizer, LambdaLR(optimizer, partial(warmup_cosine, total=total, warmup=steps, floor=floor))


def _match_names(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Give every parameter the state saved under its own name, whatever the order was when it was saved.

    torch matches optimizer states by position: two parameters of one shape that trade places would trade their moments
    without an error.

    Raises:
        CheckpointError: the checkpoint trained other parameters, or the groups are others.
    """
    saved_groups = state_dict["param_groups"]
    index_of = {
        name: index for group in saved_groups for name, index in zip(group["param_names"], group["params"], strict=True)
    }
    group_of = {name: group for group in saved_groups for name in group["param_names"]}
    wanted = {name for group in optimizer.param_groups for name in group["param_names"]}
    if differing := sorted(index_of.keys() ^ wanted):
        raise CheckpointError(
            f"cannot resume: the checkpoint trained other parameters than this stage; {len(differing)} differ: "
            f"{', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}"
        )
    position = count()
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        names = group["param_names"]
        source = group_of[names[0]]
        if source["initial_lr"] != group["initial_lr"]:
            raise CheckpointError(
                f"cannot resume: the peak learning rate of {names[0]} was {source['initial_lr']:g} and is now "
                f"{group['initial_lr']:g}; to change it, start another run with model.init_from"
            )
        positions = list(islice(position, len(names)))
        state |= {
            new: state_dict["state"][index_of[name]]
            for name, new in zip(names, positions, strict=True)
            if index_of[name] in state_dict["state"]
        }
        groups.append({**source, "param_names": names, "params": positions})
    return {**state_dict, "state": state, "param_groups": groups}
