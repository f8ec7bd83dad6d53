"""Hidden states at a few layers and positions, read while the decoder runs: nothing else is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

S = TypeVar("S")


@contextmanager
def hidden_state_taps(
    layers: Sequence[nn.Module], taps: Sequence[int], select: Callable[[int, Tensor], S]
) -> Iterator[dict[int, S]]:
    """Collect ``select(tap, hidden state)`` of inner layers during one forward pass.

    Args:
        layers: the decoder's L blocks.
        taps: indices as in transformers' ``hidden_states``; i reads the output of block i - 1. 0 (the embeddings) and L (behind
            the final norm) are outside the blocks and are left to the caller.
        select: applied to each (B, T, D) hidden state; at once, so that the rest of it is not held, or at the end where
            activation checkpointing holds it anyway.

    Yields:
        A dict that is filled as the blocks run. Blocks recomputed later by activation checkpointing do not touch it.
    """
    states: dict[int, S] = {}
    whole: dict[int, Tensor] = {}

    def reader(tap: int) -> Callable[[nn.Module, Any, Any], None]:
        def read(module: nn.Module, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            # Some versions of transformers checkpoint a block together with its hooks. Those are gone when it is computed
            # again, so what they save for the backward pass would be missing: they must save nothing.
            if module.training and getattr(module, "gradient_checkpointing", False):
                whole[tap] = hidden
            else:
                states[tap] = select(tap, hidden)

        # torch.compile would compile the reader again for each tap and number of positions, until it gives up.
        return torch.compiler.disable(read) if layers[tap - 1]._compiled_call_impl is not None else read

    handles = [layers[tap - 1].register_forward_hook(reader(tap)) for tap in taps if 0 < tap < len(layers)]
    try:
        yield states
        states |= {tap: select(tap, hidden) for tap, hidden in whole.items()}
    finally:
        for handle in handles:
            handle.remove()
