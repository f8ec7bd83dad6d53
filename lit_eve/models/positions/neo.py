"""NEO's native rotary positions (arXiv 2510.14979, section 3.2; upstream VLMTrainKit, ``NEOAttention``).

Time keeps the language model's channels. Row and column have channels of their own in queries and keys, with projections,
norms and frequencies of their own. At the start they add nothing to the scores.

Upstream begins with keys of zero under an RMSNorm, whose slope there is 1 / sqrt(eps) = 1000: their first gradients are a
thousand times the others', and clipping silences everything else. Here the keys begin as the language model's and the gains of
their norms as zero, whose gradients are of ordinary size.

Notation: B rows, T tokens per row, D width, h heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.models.attention import PACKED, PACKED_SDPA, PACKED_VARLEN
from lit_eve.models.decoders.structure import blocks_of
from lit_eve.models.decoders.swapped import Swapped
from lit_eve.models.positions.base import POSITIONS, Positions, rotary_of
from lit_eve.models.positions.native_attention import NEW, widen
from lit_eve.models.positions.thw import turn_blocks

FAMILIES = {"arcee", "llama", "mistral", "qwen2", "qwen3"}
"""Families with an attention of Llama's form (``tests/models/positions/test_neo.py``)."""

_TAKE_NARROW_VALUES = (PACKED, PACKED_SDPA, PACKED_VARLEN, "sdpa", "eager")
_ZERO = ("gains", "keys")


@POSITIONS.register("neo")
class Neo(Positions):
    """Words stand at (s, 0, 0), the tokens of an image at (s, row, column); an image takes one step.

    Args:
        theta_hw: base of the rotary frequencies of row and column; those of time are the language model's.
        zero: what is zero at the start: ``gains`` of the new keys' norms, or the new ``keys`` as upstream.

    Raises:
        ConfigError: a value that cannot be.
    """

    adds_weights = True

    def __init__(self, theta_hw: float = 10_000.0, zero: str = "gains") -> None:
        if isinstance(theta_hw, bool) or not isinstance(theta_hw, (int, float)) or not theta_hw > 0:
            raise ConfigError(f"theta_hw must be a positive number, got {theta_hw!r}")
        if zero not in _ZERO:
            raise ConfigError(f"zero must be one of {', '.join(_ZERO)}, got {zero!r}")
        self.theta_hw, self.zero = float(theta_hw), zero

    def steps(self, rows: Tensor, columns: Tensor) -> Tensor:
        return torch.ones_like(rows)

    def stand(self, start: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return start, row, column

    # ---- weights

    def extend(self, language_model: PreTrainedModel) -> None:
        """
        Raises:
            ConfigError: the family has another attention, or it was changed by a kind of decoder.
        """
        family = language_model.config.model_type
        if family not in FAMILIES:
            raise ConfigError(
                f"positions 'neo' is not for decoders of the family {family!r}, only for {', '.join(sorted(FAMILIES))}: the "
                "attention must be of Llama's form"
            )
        blocks = blocks_of(language_model)
        if (width := blocks[0].self_attn.head_dim) % 4:
            raise ConfigError(f"positions 'neo' needs heads whose width is a multiple of 4, not {width}")
        turn_blocks(language_model, "neo")
        for block in blocks:
            if any(isinstance(module, Swapped) for module in block.self_attn.modules()):
                raise ConfigError("positions 'neo' is not for a decoder_kind that changes the attention")
            widen(block.self_attn, block.input_layernorm)
            _fill(block.self_attn, self)

    def weights(self, language_model: PreTrainedModel) -> set[str]:
        names = (name for name, _ in language_model.named_parameters())
        return {name for name in names if name.split(".")[-2] in NEW}

    def begins(self, language_model: PreTrainedModel, name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Projections of row and column begin as quarters of the language model's own."""
        stem, _, ending = name.rpartition("_proj.")
        if ending == "weight" and stem.endswith(("self_attn.q", "self_attn.k")):
            width = blocks_of(language_model)[0].self_attn.head_dim
            yield f"{stem}_proj_hw.weight", self._begun(stem[-1], weight, width)

    def drawn(self, language_model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
        """Gains of the new norms."""
        for name, parameter in language_model.named_parameters():
            if (module := name.split(".")[-2]) in NEW and "norm" in module:
                yield name, torch.full(parameter.shape, self._gain(module), device="cpu")

    def _begun(self, kind: str, weight: Tensor, width: int) -> Tensor:
        return torch.zeros_like(weight) if kind == "k" and self.zero == "keys" else quarters(weight, width)

    def _gain(self, module: str) -> float:
        return 0.0 if module.startswith("k") and self.zero == "gains" else 1.0

    # ---- forward

    def arguments(self, decoder: PreTrainedModel, like: Tensor, positions: Tensor) -> dict[str, Any]:
        """``rotary`` by time, for the blocks, and ``rotary_hw`` by row and column, for their attention."""
        self.check_attention(decoder.config._attn_implementation)
        cos, sin = rotary_of(decoder, like, positions[..., :1])
        width = blocks_of(decoder)[0].self_attn.head_dim // 2  # d / 2
        pairs = torch.arange(0, width, 2, device=like.device, dtype=torch.float32)
        angles = positions[..., 1:3].movedim(-1, 0)[..., None] * self.theta_hw ** (-pairs / width)  # (2, B, T, d / 4)
        angles = torch.cat([angles, angles], -1)  # (2, B, T, d / 2)
        tables = angles.cos().to(like.dtype), angles.sin().to(like.dtype)
        return {"rotary": (cos[0], sin[0]), "rotary_hw": tuple(zip(*tables, strict=True))}

    def check_attention(self, implementation: str | None) -> None:
        if implementation not in (None, *_TAKE_NARROW_VALUES):
            raise LitEveError(
                f"attn_implementation {implementation!r} was not tried with values narrower than queries and keys (positions "
                f"'neo'); choose one of {', '.join(_TAKE_NARROW_VALUES)}"
            )

    def score_width(self, width: int) -> int:
        return 2 * width


def quarters(weight: Tensor, width: int) -> Tensor:
    """Of the d rows of each head, quarters 1 and 3, for h and once more for w: (h * d, D) -> (h * d, D)."""
    first, _, third, _ = weight.unflatten(0, (-1, width)).chunk(4, 1)  # (h, d / 4, D) each
    return torch.cat([first, third, first, third], 1).flatten(0, 1)


@torch.no_grad()
def _fill(attention: nn.Module, kind: Neo) -> None:
    """What new weights begin with where there is no checkpoint."""
    for name in NEW:
        module = getattr(attention, name)
        if "norm" in name:
            nn.init.constant_(module.weight, kind._gain(name))
        elif not module.weight.is_meta:
            own = getattr(attention, name.removesuffix("_hw"))
            module.weight.copy_(kind._begun(name[0], own.weight, attention.head_dim))
        module._is_hf_initialized = True  # or the language model would draw it anew
