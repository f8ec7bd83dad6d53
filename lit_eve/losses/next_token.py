"""Next-token cross entropy in float32, computed on supervised positions only.

Notation: B rows, T tokens per row, M supervised positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100

CHUNK_TOKENS = 2048
"""Positions whose logits exist at the same time: at V = 128k, one float32 chunk takes 1 GiB."""


class NextTokenLoss(NamedTuple):
    """Sums over the supervised positions; 0-dim tensors."""

    total: Tensor  # float32, sum of the cross entropies
    num_correct: Tensor | None  # int64, positions where the arg max is the target; None if not counted


def target_positions_of(labels: Tensor) -> Tensor:
    """Positions that predict a supervised token.

    Args:
        labels: (B, T) int64, -100 where nothing is supervised; not shifted.

    Returns:
        (M,) int64 positions t into the flattened B * T tokens, such that the label of t + 1, in the same row, is supervised.
        On a GPU this waits for the device; a collate function should call it beforehand and pass the result on.
    """
    shifted = torch.full_like(labels, IGNORE_INDEX)
    shifted[:, :-1] = labels[:, 1:]  # (B, T)
    return (shifted.flatten() != IGNORE_INDEX).nonzero().squeeze(1)


def next_token_loss(
    hidden_states: Tensor,
    targets: Tensor,
    lm_head: Callable[[Tensor], Tensor],
    count_correct: bool = False,
) -> NextTokenLoss:
    """Cross entropy of ``lm_head(hidden_states)`` against ``targets``, summed.

    Memory is bounded by one chunk of logits: with more than one chunk each is recomputed in the backward pass.

    Args:
        hidden_states: (M, D) at the supervised positions, after the final norm.
        targets: (M,) int64 token ids.
        lm_head: maps (m, D) to (m, V).
        count_correct: also count the positions predicted right.
    """

    def chunk_loss(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        logits = lm_head(states).float()  # (m, V)
        correct = (logits.argmax(-1) == ids).sum() if count_correct else None
        return F.cross_entropy(logits, ids, reduction="sum"), correct

    if len(targets) <= CHUNK_TOKENS:
        return NextTokenLoss(*chunk_loss(hidden_states, targets))
    recompute = torch.is_grad_enabled()
    parts = [
        checkpoint(chunk_loss, states, ids, use_reentrant=False) if recompute else chunk_loss(states, ids)
        for states, ids in zip(hidden_states.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    ]
    losses, corrects = zip(*parts, strict=True)
    return NextTokenLoss(torch.stack(losses).sum(), torch.stack(corrects).sum() if count_correct else None)
