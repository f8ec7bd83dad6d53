"""The linear layers of a language model's blocks that low-rank updates may be added to and merged into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.structure import blocks_of

BYPASSED = ("axk2", "deepseek_v32", "doge", "glm_moe_dsa", "hy_v4", "jamba", "zaya")
"""Families that read the weight of a linear layer without calling it, or that no gradient reaches there."""


def linear_layers(
    language_model: PreTrainedModel, names: Sequence[str] | None = None, blocks: int | None = None
) -> dict[str, nn.Linear]:
    """Linear layers by their names in the language model, in its order.

    Args:
        language_model: any.
        names: ends of their names, as in ["q_proj", "mlp.up_proj"]; None: all of a block.
        blocks: how many blocks are looked at, from the first on; None: all.

    Raises:
        ConfigError: there are none of a name, not so many blocks, or a weight that another layer shares, or a family that
            passes over such updates.
    """
    family, found = language_model.config.model_type, {}
    if family in BYPASSED:
        raise ConfigError(f"a decoder of the family {family!r} passes over updates of some of its linear layers")
    all_blocks = blocks_of(language_model)
    if blocks is not None and blocks > len(all_blocks):
        raise ConfigError(f"layers = {blocks}, but the decoder has {len(all_blocks)} layers")
    inside = {id(module) for block in list(all_blocks)[:blocks] for module in block.modules()}
    # A subclass of Linear computes something else with its weight: routers return tuples.
    linear = {name: m for name, m in language_model.named_modules() if id(m) in inside and type(m) is nn.Linear}
    if names is None:
        found = linear
    for one in names or ():
        if not (some := {name: m for name, m in linear.items() if f".{name}".endswith(f".{one}")}):
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linear)) or "none"
            raise ConfigError(f"{one!r} names no linear layer of a decoder of the family {family!r}; there are {known}")
        found |= some
    if not found:
        raise ConfigError(f"a decoder of the family {family!r} has no linear layers of torch's own kind")
    users = Counter(id(p) for _, p in language_model.named_parameters(remove_duplicate=False))
    for name, module in found.items():
        if users[id(module.weight)] > 1:
            raise ConfigError(f"{name}.weight is shared with another layer, and would take part in both")
    return found
