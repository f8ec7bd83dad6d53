"""VoRA's adapters (arXiv 2503.20680; upstream ``LoRALayer``): low-rank updates that teach a language model to see, then merge.

In the first blocks, each linear layer computes y = W x + b + B (A x), for all tokens. A is (r, in), B (out, r) and zero at the
start, so a fresh model is its language model. W + B A is the merged weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.kinds import DECODER_KINDS, DecoderKind, Merge
from lit_eve.models.decoders.linear_layers import linear_layers
from lit_eve.models.decoders.swapped import Swapped, swap


@DECODER_KINDS.register("image_adapter")
class ImageAdapter(DecoderKind):
    """Low-rank adapters in the linear layers of the first blocks. The language model's own weights usually stay frozen.

    Args:
        rank: r.
        layers: how many blocks have them, from the first on; None: all.
        modules: names of the linear layers, as in ["q_proj", "mlp.up_proj"]; None: all of a block.
        bias: give a bias to adapted layers that have none, drawn from +-1/sqrt(in), as the official code does. Then a fresh
            model is not its language model, and cannot be merged.

    Raises:
        ConfigError: a value that cannot be.
    """

    def __init__(self, rank: int, layers: int | None = None, modules: Sequence[str] | None = None, bias: bool = False) -> None:
        for key, value in (("rank", rank), ("layers", layers)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{key} must be a whole number of at least 1, got {value!r}")
        self.rank, self.layers, self.bias = rank, layers, bias
        self.modules = None if modules is None else tuple(modules)

    def extend(self, language_model: PreTrainedModel) -> None:
        """
        Raises:
            ConfigError: the language model has no such layers, or adapters in them could not be merged.
        """
        try:
            found = linear_layers(language_model, self.modules, self.layers)
        except ConfigError as error:
            raise ConfigError(f"decoder_kind 'image_adapter': {error}") from error
        for module in found.values():
            adapt(module, self.rank, self.bias)

    def drawn(self, language_model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """A at random, B zero, and new biases."""
        for name, module in language_model.named_modules():
            if isinstance(module, Adapted):
                for key, value in _fresh(module, module.lora_A.out_features).items():
                    if key != "bias" or module.has_new_bias:
                        yield f"{name}.{key}", value

    def merges(self, names: Iterable[str]) -> dict[str, Merge]:
        """
        Raises:
            ConfigError: there may be biases that a dense decoder has no place for.
        """
        if self.bias:
            raise ConfigError("adapters with bias: true cannot be merged: a dense decoder has no place for the biases they add")
        ending = ".lora_A.weight"
        layers = [name.removesuffix(ending) for name in names if name.endswith(ending)]
        return {f"{one}.weight": Merge((f"{one}.weight", f"{one}{ending}", f"{one}.lora_B.weight"), merged) for one in layers}


class Adapted(Swapped):
    """Mixed into a linear layer: adds B (A x)."""

    has_new_bias = False
    """Whether its bias is none of the language model's."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return super().forward(tokens) + self.lora_B(self.lora_A(tokens))


def adapt(module: nn.Linear, rank: int, bias: bool = False) -> None:
    """Give a linear layer an adapter, in place; its own weights keep their names."""
    where = {"device": module.weight.device, "dtype": module.weight.dtype}
    rows, columns = module.weight.shape
    module.lora_A = nn.Linear(columns, rank, bias=False, **where)
    module.lora_B = nn.Linear(rank, rows, bias=False, **where)
    if bias and module.bias is None:
        module.bias = nn.Parameter(torch.empty(rows, **where))
        module.has_new_bias = True
    swap(module, Adapted)
    if not module.weight.is_meta:
        with torch.no_grad():
            for key, value in _fresh(module, rank).items():
                if key != "bias" or module.has_new_bias:
                    module.get_parameter(key).copy_(value)
    for part in (module, module.lora_A, module.lora_B):
        part._is_hf_initialized = True  # or the language model would draw B as one of its own matrices


def _fresh(module: nn.Linear, rank: int) -> dict[str, Tensor]:
    """What an adapter begins with, on the CPU."""
    rows, columns = module.weight.shape
    bound = columns**-0.5
    return {
        "lora_A.weight": nn.init.kaiming_uniform_(torch.empty(rank, columns, device="cpu"), a=math.sqrt(5)),
        "lora_B.weight": torch.zeros(rows, rank, device="cpu"),
        "bias": nn.init.uniform_(torch.empty(rows, device="cpu"), -bound, bound),
    }


def merged(weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    """W + B A, added up in float32: (out, in), (r, in), (out, r) -> (out, in) in the dtype of W."""
    return (weight.float() + lora_b.float() @ lora_a.float()).to(weight.dtype)
