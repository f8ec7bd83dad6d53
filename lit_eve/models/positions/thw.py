"""Time, height and width on the decoder's own rotary embedding: M-RoPE (Qwen2-VL, arXiv 2409.12191, section 2.1).

Notation: B rows, T tokens per row, d width of a head, r rotated channels of it, in r / 2 pairs (i, i + r / 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.models.decoders.families import TURNS_HALVES
from lit_eve.models.decoders.structure import blocks_of, decoder_of
from lit_eve.models.decoders.swapped import Swapped, swap
from lit_eve.models.positions.base import POSITIONS, Positions, rotary_of


class TurnedBlock(Swapped):
    """Mixed into a block of the decoder: its attention turns queries and keys by what it is given."""

    def forward(self, *args: Any, rotary: tuple[Tensor, Tensor] | None = None, **kwargs: Any) -> Any:
        """As the block's; ``rotary``: cosines and sines (B, T, r) instead of those of counted tokens."""
        if rotary is not None:
            kwargs["position_embeddings"] = rotary
        return super().forward(*args, **kwargs)


def turn_blocks(language_model: PreTrainedModel, kind: str) -> None:
    """Let the blocks of a decoder take ``rotary``, in place.

    Raises:
        ConfigError: its family has no rotary embedding of the usual form.
    """
    family = language_model.config.model_type
    if family not in TURNS_HALVES:
        raise ConfigError(
            f"positions {kind!r} is not for decoders of the family {family!r}: it must have one rotary embedding for all "
            "layers, whose cosines are those of (i, i + r / 2), and read packed rows as they are"
        )
    for block in blocks_of(language_model):
        swap(block, TurnedBlock, keeps_name=True)


@POSITIONS.register("thw")
class TimeHeightWidth(Positions):
    """Qwen2-VL's (``get_rope_index``): words stand at (s, s, s), the tokens of an image at (s, s + row, s + column).

    Args:
        sections: how many of the r / 2 pairs t, h and w turn; default: Qwen2-VL's 2 : 3 : 3 (16, 24, 24 with r = 128).

    Raises:
        ConfigError: they are not three positive numbers.
    """

    def __init__(self, sections: Sequence[int] | None = None) -> None:
        whole = lambda size: isinstance(size, int) and not isinstance(size, bool) and size > 0  # noqa: E731
        if sections is not None and (isinstance(sections, str) or len(sections) != 3 or not all(map(whole, sections))):
            raise ConfigError(f"the sections of positions must be three positive whole numbers, got {sections!r}")
        self.sections = None if sections is None else tuple(sections)

    def steps(self, rows: Tensor, columns: Tensor) -> Tensor:
        return torch.maximum(rows, columns)

    def stand(self, start: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return start, start + row, start + column

    def extend(self, language_model: PreTrainedModel) -> None:
        """
        Raises:
            ConfigError: the family has no rotary embedding of the usual form, or the sections do not fit it.
        """
        turn_blocks(language_model, "thw")
        self._sections(decoder_of(language_model).rotary_emb.inv_freq.shape[0])

    def arguments(self, decoder: PreTrainedModel, like: Tensor, positions: Tensor) -> dict[str, Any]:
        """``rotary``: the first pairs turn by t, the next by h, the last by w."""
        rotary = rotary_of(decoder, like, positions[..., :3])  # (3, B, T, r) each
        sizes = [*self._sections(rotary[0].shape[-1] // 2)] * 2
        pieces = [x.split(sizes, -1) for x in rotary]
        return {"rotary": tuple(torch.cat([piece[i % 3] for i, piece in enumerate(x)], -1) for x in pieces)}

    def _sections(self, pairs: int) -> tuple[int, int, int]:
        if self.sections is None:
            side = 3 * pairs // 8
            return pairs - 2 * side, side, side
        if sum(self.sections) != pairs:
            raise ConfigError(f"positions.sections: {list(self.sections)} must add up to the {pairs} pairs of this decoder")
        return self.sections
