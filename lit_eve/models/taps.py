"""Hidden states at a few layers and positions, read while the decoder runs: nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def hidden_state_taps(
    layers: Sequence[nn.Module], taps: Sequence[int], select: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, Tensor]]:
    """Collect ``select(hidden state)`` of inner layers during one forward pass.

    Args:
        layers: the decoder's L blocks.
        taps: indices as in transformers' ``hidden_states``; i reads the output of block i - 1. 0 (the embeddings) and L (behind
            the final norm) are outside the blocks and are left to the caller.
        select: applied at once to each (B, T, D) hidden state, so that the rest of it is not held.

    Yields:
        A dict that is filled as the blocks run. Blocks recomputed later by activation checkpointing do not touch it.
    """
    states: dict[int, Tensor] = {}

    def reader(tap: int) -> Callable[[nn.Module, Any, Any], None]:
        def read(_module: nn.Module, _inputs: Any, output: Any) -> None:
            states[tap] = select(output[0] if isinstance(output, tuple) else output)

        return read

    handles = [layers[tap - 1].register_forward_hook(reader(tap)) for tap in taps if 0 < tap < len(layers)]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
