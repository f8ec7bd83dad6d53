"""Attention probabilities of a few layers, heads and rows, recorded while the model runs as it always does.

    with AttentionRecorder(model, layers=[-1], rows=-1) as recorder:
        model.generate(**inputs)
    first_token = recorder.calls(-1)[0]          # (B, heads, 1, T)

A fast kernel never holds the probabilities. The recorder stands in front of it, in transformers' table of attention
functions: there it meets queries and keys as they are (rotated, normalised, with those of the KV cache), recomputes the
softmax for the rows it was asked for, and calls the kernel. Nothing of the model is changed, whichever kernel it uses.

Notation: B rows of the batch, h heads, Q query positions of a call, K key positions, R recorded rows, d head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import LitEveError
from lit_eve.models.attention import PackedRows

_active: dict[str, list[AttentionRecorder]] = {}  # recorders at work, by attention implementation


class AttentionRecorder:
    """Context manager that records attention probabilities of a model's decoder.

    Args:
        model: EVE, or any causal language model of transformers whose attention goes through its table of attention functions
            (LLaMA, Qwen2, Qwen3, Mistral, OLMo, SmolLM...).
        layers: decoder layers, negative ones from the end; None: all.
        heads: query heads; None: all.
        rows: query positions of each call of the model, negative ones from the end; None: all (that is Q x K numbers per head:
            mind the memory). The default -1 is the position that predicts the next token, in every step of ``generate``.

    Raises:
        LitEveError: the model's attention cannot be recorded, or a layer or head does not exist.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        rows: int | Sequence[int] | None = -1,
    ) -> None:
        modules = _attention_modules(model)
        chosen = range(len(modules)) if layers is None else _indices(layers, len(modules), "layer")
        self.num_layers = len(modules)
        self._layer_of = {modules[index]: index for index in chosen}
        self._heads = None if heads is None else _indices(heads, modules[0].config.num_attention_heads, "head")
        self._rows = [rows] if isinstance(rows, int) else rows
        self._implementation: str = modules[0].config._attn_implementation
        self._calls: dict[int, list[Tensor]] = {index: [] for index in chosen}

    @property
    def layers(self) -> list[int]:
        """The recorded layers, counted from 0."""
        return list(self._calls)

    def calls(self, layer: int) -> list[Tensor]:
        """The probabilities of one layer, one tensor (B, h, R, K) float32 per call of the model.

        ``generate`` calls it with the prompt first, then once per token, with K growing.

        Raises:
            LitEveError: that layer is not recorded, or the model was not called.
        """
        layer = layer + self.num_layers if layer < 0 else layer
        if layer not in self._calls:
            raise LitEveError(f"layer {layer} is not recorded; recorded are {self.layers}")
        if not self._calls[layer]:
            raise LitEveError(
                "nothing was recorded: call the model inside the recorder's with block (compiled models are not seen)"
            )
        return self._calls[layer]

    def mean(self, call: int = 0) -> Tensor:
        """(B, R, K): the mean over the recorded heads and layers of one call."""
        return torch.stack([self.calls(layer)[call].mean(1) for layer in self.layers]).mean(0)

    def __enter__(self) -> AttentionRecorder:
        recorders = _active.setdefault(self._implementation, [])
        if not recorders:
            ALL_ATTENTION_FUNCTIONS[self._implementation] = _recording(self._implementation, recorders)
        recorders.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _active[self._implementation].remove(self)
        if not _active[self._implementation]:
            del _active[self._implementation], ALL_ATTENTION_FUNCTIONS[self._implementation]

    @torch.no_grad()
    def _record(self, layer: int, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, **kwargs: Any) -> None:
        for name, what in (("softcap", "caps its attention scores"), ("s_aux", "has attention sinks")):
            if kwargs.get(name) is not None:
                raise LitEveError(f"{type(module).__name__} {what}: its attention cannot be recorded")
        length = query.shape[2]
        rows = torch.arange(length, device=query.device)
        if self._rows is not None:
            rows = rows[_indices(self._rows, length, "row")]  # (R,)
        visible = _visible(rows, length, key.shape[2], mask, kwargs.get("sliding_window"), _samples(query, **kwargs))
        query = query[:, :, rows]  # (B, h, R, d)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # (B, h, K, d)
        if self._heads is not None:
            query, key = query[:, self._heads], key[:, self._heads]
        scaling = kwargs.get("scaling")
        scores = query.float() @ key.float().transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        self._calls[layer].append(scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1))


def _recording(implementation: str, recorders: list[AttentionRecorder]) -> Callable[..., Any]:
    """The attention function that is called now, with the recorders in front of it."""
    kernel = ALL_ATTENTION_FUNCTIONS.get(implementation)

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        for recorder in recorders:
            if (layer := recorder._layer_of.get(module)) is not None:
                recorder._record(layer, module, query, key, attention_mask, **kwargs)
        # "eager" is not in the table: every modeling file brings its own.
        run = kernel or inspect.getmodule(type(module)).eager_attention_forward
        return run(module, query, key, value, attention_mask, **kwargs)

    return attention


def _samples(query: Tensor, packed: PackedRows | None = None, cu_seq_lens_q: Tensor | None = None, **_: Any) -> Tensor | None:
    """(B, Q) the sample of each token in packed rows, however the kernel is told of their boundaries; None if it is not."""
    if packed is None and cu_seq_lens_q is not None:  # transformers' flash attentions
        packed = PackedRows(cu_seq_lens_q, query.shape[2], query.shape[0], query.shape[2], kernel="")
    return None if packed is None else packed.sample_of_token


def _visible(rows: Tensor, length: int, keys: int, mask: Tensor | None, window: int | None, samples: Tensor | None) -> Tensor:
    """Which keys the chosen rows may look at, whatever form the kernel's mask has: bool, broadcastable to (B, h, R, K)."""
    if mask is not None and mask.ndim == 4 and samples is None:
        mask = mask[:, :, rows, :keys]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    place = torch.arange(keys, device=rows.device)
    row = (rows + keys - length)[:, None]  # (R, 1): the last query stands at the last key
    visible = place <= row  # (R, K)
    if window is not None:
        visible &= place > row - window
    if samples is not None:  # a mask that comes with them is not read by the kernel either
        return (visible & (samples[:, rows, None] == samples[:, None]))[:, None]
    if mask is not None:  # (B, K) of the flash kernels, 0 at padding
        return (visible & mask[:, None].bool())[:, None]
    return visible


def _attention_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The attention module of each decoder layer."""
    decoder = model.get_decoder()
    modules = [getattr(layer, "self_attn", None) for layer in getattr(decoder, "layers", ())]
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


def _indices(indices: Sequence[int], count: int, what: str) -> list[int]:
    for index in indices:
        if not -count <= index < count:
            raise LitEveError(f"there is no {what} {index}: there are {count}")
    return [index % count for index in indices]
