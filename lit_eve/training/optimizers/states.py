"""Saved states of an optimizer go to the parameters of the same name, of the same optimizer with the same settings."""

from __future__ import annotations

from itertools import count, islice
from typing import Any

from torch.optim import Optimizer

from lit_eve.errors import CheckpointError

# Entries of a group that say how an update is computed, or that change during the run; the others decide what it is.
_FREE = {"params", "param_names", "label", "lr", "fused", "foreach", "capturable", "differentiable"}
_TITLES = {"initial_lr": "peak learning rate"}


def match_names(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Give every parameter the state saved under its own name, whatever the order was when it was saved.

    torch matches optimizer states by position: two parameters of one shape that trade places would trade their moments
    without an error. It also takes the settings of the saved groups for those that were asked for.

    Raises:
        CheckpointError: the checkpoint trained other parameters, by another optimizer, or with other settings.
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
        for name in names:
            _refuse_other_settings(name, group_of[name], group)
        positions = list(islice(position, len(names)))
        state |= {
            new: state_dict["state"][index_of[name]]
            for name, new in zip(names, positions, strict=True)
            if index_of[name] in state_dict["state"]
        }
        groups.append({**group, "lr": group_of[names[0]]["lr"], "param_names": names, "params": positions})
    return {**state_dict, "state": state, "param_groups": groups}


def _refuse_other_settings(name: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    for key in sorted((saved.keys() | now.keys()) - _FREE):
        if key not in saved or key not in now:
            raise CheckpointError(
                f"cannot resume: the checkpoint updated {name} by another optimizer (of the two only one has {key!r})"
            )
        if saved[key] != now[key]:
            raise CheckpointError(
                f"cannot resume: the {_TITLES.get(key, key)} of {name} was {_text(saved[key])} and is now {_text(now[key])}; "
                "to change it, start another run with model.init_from"
            )


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
