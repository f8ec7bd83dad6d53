"""Models whose weights are on the meta device, and whose buffers are real.

Weights come from files. Buffers that are in no state dict (rotary frequencies, ALiBi slopes, multipliers) come from nowhere but
the constructor; one that was built on the meta device would hold whatever lies in memory. So there is one way for all models to
get them: the constructor runs with its parameters on the meta device, and what it computed is copied.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.imports import path_of


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that are built inside take no memory for weights, and their buffers are computed as always, on the CPU."""

    def to_meta(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # also one that is tied: it has to stay the same object
            return None
        return type(parameter)(parameter.to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(to_meta)
    try:
        with torch.device("cpu"):
            yield
    finally:
        handle.remove()


def unsaved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are in no state dict, by their full names."""
    return {
        f"{prefix}.{name}" if prefix else name: module._buffers[name]
        for prefix, module in model.named_modules()
        for name in sorted(module._non_persistent_buffers_set)
        if module._buffers.get(name) is not None
    }


@torch.no_grad()
def restore_buffers(model: PreTrainedModel) -> None:
    """Give the buffers that are in no state dict the values that the constructor computes for them.

    Args:
        model: with its buffers on the device and in the type that they keep.
    """
    kind = type(model)

    def build() -> PreTrainedModel:
        return kind(copy.deepcopy(model.config))

    with torch.random.fork_rng(devices=[]), parameters_on_meta():
        computed = unsaved_buffers(build())
    if path_of(kind) is not None:  # parts are looked at when they are built
        _check_drawn(build, unsaved_buffers, kind.__name__)
    for name, buffer in unsaved_buffers(model).items():
        if name in computed:
            buffer.copy_(computed[name])


def check_unsaved(part: nn.Module, build: Callable[[], nn.Module], what: str) -> None:
    """Refuse a part that computes with what is not saved: it would be another part after each loading.

    Args:
        part: the part.
        build: builds another one.
        what: its name, for the message.

    Raises:
        ConfigError: a tensor that is neither parameter nor buffer, or two parts built one after the other differ in a buffer,
            an array or a number that is in no state dict.
    """
    if plain := next((name for name, value in _attributes(part) if isinstance(value, Tensor)), None):
        raise ConfigError(
            f"{what} keeps {plain!r} as a plain tensor, which is neither saved nor moved with the model: make it a parameter "
            "or a buffer"
        )
    _check_drawn(build, lambda part: unsaved_buffers(part) | dict(filter(_is_number, _attributes(part))), what)


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Plain attributes of a module and of all in it, by their full names."""
    for prefix, inner in module.named_modules():
        for name, value in vars(inner).items():
            yield f"{prefix}.{name}" if prefix else name, value


def _is_number(attribute: tuple[str, Any]) -> bool:
    """Whether an attribute is a number, or a list or an array of them."""
    value = attribute[1]
    return isinstance(value, np.ndarray | int | float) or (
        isinstance(value, list | tuple) and all(isinstance(one, int | float) for one in value)
    )


def _check_drawn(build: Callable[[], nn.Module], facts: Callable[[nn.Module], dict[str, Any]], what: str) -> None:
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(2):
            torch.manual_seed(seed)
            with parameters_on_meta():
                drawn.append(facts(build()))
    for name, first in drawn[0].items():
        second = drawn[1][name]
        if isinstance(first, Tensor) and first.is_meta:  # a plan draws nothing
            continue
        same = torch.equal(first, second) if isinstance(first, Tensor) else pickle.dumps(first) == pickle.dumps(second)
        if not same:
            raise ConfigError(
                f"{what} draws {name!r} at random and does not save it, so that it would be another one after loading: make it "
                "a buffer with persistent=True"
            )
