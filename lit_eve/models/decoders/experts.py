"""Experts per modality: image tokens have weights of their own in every block, words keep the language model's.

EVE v2 (arXiv 2502.06788, section 3.2) has two of norms, attention and MLP; Mono-InternVL (arXiv 2410.08202) of the MLP alone.
The attention is one over all tokens, and what acts between them or on their scores is shared (sinks, gates of a head); so are
embeddings, the final norm and the head. Image copies begin as the language model's weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.families import keeps_samples_apart
from lit_eve.models.decoders.kinds import DECODER_KINDS, DecoderKind
from lit_eve.models.decoders.routing import image_copies, route, route_block
from lit_eve.models.decoders.structure import blocks_of

PARTS = ("norms", "attention", "mlp")
HEADS_FIRST = (
    *("apertus", "exaone4", "exaone_moe", "gemma3_text", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3", "kolibri1"),
    "phi",
)
"""Families that normalise queries and keys as (B, heads, T, d). The others do it before heads and tokens trade places."""

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")


@DECODER_KINDS.register("experts")
class Experts(DecoderKind):
    """Copies of modules for image slots.

    Args:
        parts: which modules of every block have one: ``norms`` (those beside attention and MLP), ``attention`` (its linear
            layers, and norms of queries and keys), ``mlp``.

    Raises:
        ConfigError: there is no such part, or none at all.
    """

    needs_image_slots = True

    def __init__(self, parts: Sequence[str] = PARTS) -> None:
        if isinstance(parts, str) or not parts or len({*parts}) < len(parts) or not {*parts} <= {*PARTS}:
            raise ConfigError(f"the parts of experts must be some of {', '.join(PARTS)}, each once, got {parts!r}")
        self.parts = tuple(part for part in PARTS if part in parts)

    def extend(self, language_model: PreTrainedModel) -> None:
        """
        Raises:
            ConfigError: blocks of this family are not told where images stand, or have no module of a part, or one that is not
                computed token by token.
        """
        config, family = language_model.config, language_model.config.model_type
        if not keeps_samples_apart(config):
            raise ConfigError(
                f"decoder_kind 'experts' cannot be used with a decoder of the family {family!r}: it reads samples side by "
                "side, and does not tell its blocks where images stand"
            )
        blocks = blocks_of(language_model)
        modules = {part: [module for block in blocks for module in _modules(block, part, family)] for part in self.parts}
        for part, found in modules.items():
            if not found:
                raise ConfigError(f"decoder_kind.parts: {part!r} names no weights of a decoder of the family {family!r}")
            for module in found:
                route(module, heads_first=part == "attention" and _is_norm(module) and family in HEADS_FIRST)
        for block in blocks:
            route_block(block)

    def copies(self, language_model: PreTrainedModel) -> dict[str, str]:
        """Every image copy begins as the language model's own."""
        return image_copies(language_model)


def _modules(module: nn.Module, part: str, family: str) -> list[nn.Module]:
    """The modules of a part in a block, found by what stands in it: attention by its name, norms by their class."""
    found = []
    for name, child in module.named_children():
        if not any(True for _ in child.parameters()):
            continue
        if name in _ATTENTION:
            found += _token_by_token(child, family) if part == "attention" else []
        elif _is_norm(child):
            found += [child] if part == "norms" else []
        elif any(inner.rpartition(".")[2] in _ATTENTION for inner, _ in child.named_modules()):
            found += _modules(child, part, family)
        elif part == "mlp":
            found.append(child)
    return found


def _token_by_token(attention: nn.Module, family: str) -> list[nn.Module]:
    """Linear layers and norms of an attention; weights of its own act between tokens, and are shared.

    Raises:
        ConfigError: it has weights in other modules, or a linear layer that computes what is in the KV cache.
    """
    refused = f"decoder_kind.parts: 'attention' cannot be used with a decoder of the family {family!r}: its"
    if hasattr(attention, "kv_b_proj"):  # keys and values of images in the cache would be expanded by the words' weights
        raise ConfigError(f"{refused} KV cache holds latent vectors, which kv_b_proj expands anew for every word")
    found = []
    for name, module in attention.named_modules():
        if module is attention or not any(True for _ in module.parameters(recurse=False)):
            continue
        if not (isinstance(module, nn.Linear) or _is_norm(module)):
            raise ConfigError(f"{refused} {name} ({type(module).__name__}) is neither a linear layer nor a norm")
        found.append(module)
    return found


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
