"""Standing in front of a model's attention kernel.

Transformers looks its attention functions up in a table, by name. There queries and keys are as the kernel gets them: rotated,
normalised, with those of the KV cache. Whoever stands there needs nothing of the model changed, whichever kernel it uses.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock, get_ident
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import LitEveError
from lit_eve.models.decoders import blocks_of, decoder_of

Kernel = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class AttentionCall:
    """One call of the kernel. B rows of the batch, h heads, kv heads of keys, Q query and K key positions, d head width."""

    layer: int
    """Of the decoder, from 0."""
    module: nn.Module
    """The attention module that calls."""
    query: Tensor
    """(B, h, Q, d)"""
    key: Tensor
    """(B, kv, K, d), with those of the KV cache."""
    value: Tensor
    """(B, kv, K, d)"""
    mask: Tensor | None
    """In the form that this kernel takes."""
    settings: dict[str, Any]
    """What else the kernel is given: scaling, windows, boundaries of packed samples."""
    kernel: Kernel

    def run(self) -> tuple[Tensor, Tensor | None]:
        """What the kernel returns: (B, Q, h, d), and the weights or None."""
        return self.kernel(self.module, self.query, self.key, self.value, self.mask, **self.settings)


Interceptor = Callable[[AttentionCall], tuple[Tensor, Tensor | None]]
"""Stands in front of the kernel: returns ``call.run()``, or something else of its shape."""

Present = list[tuple[int, dict[nn.Module, int], Interceptor]]  # the thread it belongs to, the layers of modules, and itself
_active: dict[str, Present] = {}  # by attention implementation
_changing = Lock()


@contextmanager
def intercept_attention(
    model: PreTrainedModel, interceptor: Interceptor, layers: Sequence[int] | None = None
) -> Iterator[None]:
    """Every call of the attention kernel of these layers by this thread goes through ``interceptor``.

    Args:
        model: EVE, or a causal language model of transformers.
        interceptor: called instead of the kernel.
        layers: from 0; None: all.

    Raises:
        LitEveError: the model's attention does not go through transformers' table.
    """
    modules = attention_modules(model)
    chosen = {modules[layer]: layer for layer in (range(len(modules)) if layers is None else layers)}
    implementation: str = modules[0].config._attn_implementation
    entry = (get_ident(), chosen, interceptor)
    with _changing:
        present = _active.setdefault(implementation, [])
        if not present:
            ALL_ATTENTION_FUNCTIONS[implementation] = _front_of(implementation, present)
        present.append(entry)
    try:
        yield
    finally:
        with _changing:
            present.remove(entry)
            if not present:
                del _active[implementation], ALL_ATTENTION_FUNCTIONS[implementation]


def in_this_thread(hook: Callable[..., None]) -> Callable[..., None]:
    """The hook of a module, for calls by the thread that runs now: others may use the model meanwhile."""
    home = get_ident()

    def only_here(*arguments: Any, **kwargs: Any) -> None:
        if get_ident() == home:
            hook(*arguments, **kwargs)

    return only_here


def _front_of(implementation: str, present: Present) -> Kernel:
    """The attention function that is called now, with the interceptors in front of it; the first that came is called first."""
    kernel = ALL_ATTENTION_FUNCTIONS.get(implementation)

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        # "eager" is not in the table: every modeling file brings its own.
        run = kernel or inspect.getmodule(type(module)).eager_attention_forward
        for thread, chosen, interceptor in reversed([*present]):  # a copy: other threads come and go
            if thread == get_ident() and (layer := chosen.get(module)) is not None:
                run = _behind(interceptor, layer, run)
        return run(module, query, key, value, attention_mask, **kwargs)

    return attention


def _behind(interceptor: Interceptor, layer: int, kernel: Kernel) -> Kernel:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
    ) -> tuple[Tensor, Tensor | None]:
        return interceptor(AttentionCall(layer, module, query, key, value, attention_mask, settings, kernel))

    return attention


def attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of each decoder layer.

    Raises:
        LitEveError: there is none, or it does not go through transformers' table.
    """
    decoder = decoder_of(getattr(model, "language_model", model))
    modules = [getattr(layer, "self_attn", None) for layer in blocks_of(decoder)]
    kind = type(decoder).__name__
    if not modules or None in modules:
        raise LitEveError(f"{kind}: its attention cannot be recorded, as its layers have no self_attn")
    source = inspect.getsource(type(modules[0]).forward)
    implementation = modules[0].config._attn_implementation
    if "ALL_ATTENTION_FUNCTIONS" not in source or implementation is None:
        raise LitEveError(
            f"{kind}: its attention cannot be recorded, as it does not go through transformers' attention functions"
        )
    return modules


def indices(chosen: Sequence[int] | None, count: int, what: str, *, distinct: bool = True) -> list[int]:
    """Indices from 0 of those that are chosen, negative ones from the end; None: all.

    Raises:
        LitEveError: there is no such one, none is chosen or, where they must be distinct, one is chosen twice.
    """
    if chosen is None:
        return list(range(count))
    for index in chosen:
        if not -count <= index < count:
            raise LitEveError(f"there is no {what} {index}: there are {count}")
    found = [index % count for index in chosen]
    if not found:
        raise LitEveError(f"no {what} is chosen; None chooses all of them")
    if distinct and (twice := [index for index in found if found.count(index) > 1]):
        raise LitEveError(f"{what} {twice[0]} is chosen twice")
    return found
