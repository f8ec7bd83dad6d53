"""Models whose weights are on the meta device, and whose buffers are real.

Weights come from files. Buffers that are in no state dict (rotary frequencies, ALiBi slopes, multipliers) come from nowhere but
the constructor; one that was built on the meta device would hold whatever lies in memory. So there is one way for all models to
get them: the constructor runs with its parameters on the meta device, and what it computed is copied.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError


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
    with torch.random.fork_rng(devices=[]), parameters_on_meta():
        computed = unsaved_buffers(type(model)(copy.deepcopy(model.config)))
    for name, buffer in unsaved_buffers(model).items():
        if name in computed:
            buffer.copy_(computed[name])


def check_buffers(part: nn.Module, build: Callable[[], nn.Module], what: str) -> None:
    """Refuse a part that draws buffers at random and does not save them: it would be another part after each loading.

    Args:
        part: the part.
        build: builds another one.
        what: its name, for the message.

    Raises:
        ConfigError: two parts built one after the other differ in a buffer that is in no state dict.
    """
    if not unsaved_buffers(part):
        return
    drawn = []
    with torch.random.fork_rng(devices=[]):
        for seed in range(2):
            torch.manual_seed(seed)
            with parameters_on_meta():
                drawn.append(unsaved_buffers(build()))
    for name, first in drawn[0].items():
        if not torch.equal(first, drawn[1][name]):
            raise ConfigError(
                f"{what} draws its buffer {name!r} at random and does not save it, so that it would be another one after "
                "loading: register it with persistent=True"
            )
