"""Where the samples of packed rows begin and end, and what a query of theirs may see."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedRows:
    """Where samples begin and end; made once per forward pass, read by the attention of every layer."""

    cu_seqlens: Tensor  # (S + 1,) int32, boundaries over the flattened B * T tokens; no sample crosses a row
    max_seqlen: int  # no sample is longer
    rows: int  # B
    length: int  # T
    kernel: str  # "flash_attn", "varlen", "samples" or "mask": the best that name and device allow
    autocast: torch.dtype | None = None  # what autocast computes in, where it is on
    _masks: dict[int | None, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def sample_lengths(self) -> list[int]:
        """Tokens of each sample. Only for the CPU: anywhere else this waits for the device."""
        return self.cu_seqlens.diff().tolist()

    @cached_property
    def sample_of_token(self) -> Tensor:
        """(B, T) int64, a number that the tokens of a sample share."""
        places = torch.arange(self.rows * self.length, dtype=self.cu_seqlens.dtype, device=self.cu_seqlens.device)
        return torch.searchsorted(self.cu_seqlens, places, right=True).view(self.rows, self.length)

    def mask(self, window: int | None = None) -> Tensor:
        """True where a query may look: back, within its own sample, at most at ``window`` tokens with its own.

        With samples of 2 and 3 tokens in a row of 5::

            1 . . . .
            1 1 . . .
            . . 1 . .
            . . 1 1 .
            . . 1 1 1

        Returns:
            (B, 1, T, T) bool; the same tensor for every layer that asks.
        """
        if window not in self._masks:
            sample = self.sample_of_token
            same = sample[:, None, :, None] == sample[:, None, None, :]  # (B, 1, T, T)
            self._masks[window] = same & band(self.length, window, sample.device)
        return self._masks[window]


def band(length: int, window: int | None, device: torch.device) -> Tensor:
    """(length, length) bool: back, and at most at ``window`` tokens with the query's own."""
    band = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return band if window is None else band.triu(1 - window)
