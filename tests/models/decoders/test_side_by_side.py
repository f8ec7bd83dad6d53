"""Packed rows to one sample per row, and back."""

from __future__ import annotations

import pytest
import torch

from lit_eve.models.decoders import SideBySide


@pytest.mark.parametrize("max_seqlen", [None, 4, 9])
def test_samples_are_laid_side_by_side_and_come_back(max_seqlen):
    rows = torch.arange(12).view(2, 6, 1)
    apart = SideBySide.of(torch.tensor([0, 2, 6, 9, 10, 12]).int(), max_seqlen, 2, 6)
    laid_out = apart.lay_out(rows)[..., 0]
    for sample, expected in zip(laid_out.tolist(), [[0, 1], [2, 3, 4, 5], [6, 7, 8], [9], [10, 11]], strict=True):
        assert sample == expected + [expected[-1]] * (len(sample) - len(expected))
    assert laid_out.shape[1] == (4 if max_seqlen == 4 else 6)
    assert torch.equal(apart.pack(apart.lay_out(rows)), rows)
