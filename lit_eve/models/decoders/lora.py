"""LoRA (arXiv 2106.09685) and DoRA (2402.09353) by the library ``peft``, in a decoder that is otherwise as it was.

peft puts a module in the place of each adapted linear layer: ``q_proj.weight`` is then called ``q_proj.base_layer.weight``,
beside ``q_proj.lora_A.default.weight`` and others. Merged weights have their old names, and need no peft.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.kinds import Merge
from lit_eve.models.decoders.linear_layers import linear_layers

_BASE, _A, _B, _MAGNITUDE = (
    f".{part}" for part in ("base_layer", "lora_A.default", "lora_B.default", "lora_magnitude_vector.default")
)


def check_installed() -> None:
    """Raise ConfigError without peft."""
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "LoRA adapters need the package peft: pip install 'lit-eve[peft]' (a model without them: lit-eve convert --merge, "
            f"where it is installed): {error}"
        ) from error


def add_lora(language_model: PreTrainedModel, lora: Mapping[str, Any]) -> None:
    """Put adapters into a language model, in place; B is zero.

    Args:
        language_model: any.
        lora: ``rank``, ``alpha``, ``dropout``, ``target_modules``, ``use_dora``.

    Raises:
        ConfigError: peft is not installed, or linear layers that are not there or cannot be adapted.
    """
    check_installed()
    from peft import LoraConfig, inject_adapter_in_model

    try:
        found = linear_layers(language_model, lora["target_modules"])
    except ConfigError as error:
        raise ConfigError(f"lora: {error}") from error
    trains = [parameter for parameter in language_model.parameters() if parameter.requires_grad]
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=list(found),
        use_dora=lora["use_dora"],
    )
    inject_adapter_in_model(config, language_model)
    for parameter in trains:  # what trains is for a stage to say
        parameter.requires_grad_(True)
    for layer in lora_layers(language_model).values():
        for part in layer.modules():
            part._is_hf_initialized = True  # or the language model would draw B as one of its own matrices


def lora_layers(language_model: nn.Module) -> dict[str, nn.Module]:
    """The adapted layers, by the names that their linear layers had."""
    return {name: module for name, module in language_model.named_modules() if hasattr(module, "base_layer")}


def lora_started(stored: Iterable[tuple[str, Tensor]], language_model: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Weights of a language model without adapters, under the names that they have in one that may have some.

    Args:
        stored: names, which begin with ``prefix`` in the language model, and tensors.
        language_model: the one that may have adapters.
        prefix: of its names.

    Yields:
        the same, and the lengths of the rows of a matrix with which DoRA begins.
    """
    layers = {prefix + name: module for name, module in lora_layers(language_model).items()}
    for name, tensor in stored:
        layer, _, last = name.rpartition(".")
        if layer not in layers:
            yield name, tensor
            continue
        yield f"{layer}{_BASE}.{last}", tensor
        if last == "weight" and len(layers[layer].lora_magnitude_vector):
            yield f"{layer}{_MAGNITUDE}.weight", torch.linalg.norm(tensor.float(), dim=1).to(tensor.dtype)


def lora_drawn(language_model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A at random and B zero: their names in the language model, and full tensors on the CPU."""
    for name, layer in lora_layers(language_model).items():
        lora_a, lora_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        yield f"{name}{_A}.weight", nn.init.kaiming_uniform_(torch.empty(lora_a.shape, device="cpu"), a=math.sqrt(5))
        yield f"{name}{_B}.weight", torch.zeros(lora_b.shape, device="cpu")


def lora_merges(names: Iterable[str], lora: Mapping[str, Any]) -> dict[str, Merge]:
    """How the weights of a language model without adapters are made of these (:meth:`DecoderKind.merges`)."""
    scale, parts = lora["alpha"] / lora["rank"], [_A, _B, *([_MAGNITUDE] if lora["use_dora"] else [])]

    def compute(weight: Tensor, lora_a: Tensor, lora_b: Tensor, magnitude: Tensor | None = None) -> Tensor:
        merged = weight.float() + scale * (lora_b.float() @ lora_a.float())  # (out, in)
        if magnitude is not None:
            merged = merged * (magnitude.float() / torch.linalg.norm(merged, dim=1))[:, None]
        return merged.to(weight.dtype)

    merges = {}
    for name in names:
        layer, found, last = name.partition(f"{_BASE}.")
        if found:
            others = [f"{layer}{part}.weight" for part in parts] if last == "weight" else []
            merges[f"{layer}.{last}"] = Merge((name, *others), compute if others else _as_it_is)
    return merges


def _as_it_is(value: Tensor) -> Tensor:
    return value
