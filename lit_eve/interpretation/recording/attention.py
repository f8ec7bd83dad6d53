"""Attention probabilities of a few layers, heads and rows, recorded while the model runs as it always does.

    with AttentionRecorder(model, layers=[-1], rows=-1) as recorder:
        model.generate(**inputs)
    first_token = recorder.calls(-1)[0]          # (B, heads, 1, T)

A fast kernel never holds the probabilities. The recorder stands in front of it (`intercept`), recomputes the softmax for the
rows it was asked for, and calls the kernel. What the kernel returns must be what follows from them.

Notation: B rows of the batch, h heads, Q query positions of a call, K key positions, R recorded rows, d head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_eve.errors import LitEveError
from lit_eve.interpretation.recording.intercept import AttentionCall, attention_modules, indices, intercept_attention
from lit_eve.models.attention import PackedRows


class AttentionRecorder:
    """Context manager that records attention probabilities of a model's decoder, in calls by the thread that entered it.

    Args:
        model: EVE, or any causal language model of transformers whose attention goes through its table of attention functions
            (LLaMA, Qwen2, Qwen3, Mistral, OLMo, SmolLM...).
        layers: decoder layers, negative ones from the end; None: all.
        heads: query heads; None: all.
        rows: query positions of each call of the model, negative ones from the end; None: all (that is Q x K numbers per head:
            mind the memory). The default -1 is the position that predicts the next token, in every step of ``generate``.

    Raises:
        LitEveError: the model's attention cannot be recorded, or a layer or head does not exist. On the first call: the kernel
            computes something else (an attention of one's own with another mask, say).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        rows: int | Sequence[int] | None = -1,
    ) -> None:
        modules = attention_modules(model)
        self.num_layers = len(modules)
        self._model = model
        self.heads = indices(heads, modules[0].config.num_attention_heads, "head")
        """The recorded heads, from 0."""
        self._rows = [rows] if isinstance(rows, int) else rows
        self._calls: dict[int, list[Tensor]] = {layer: [] for layer in indices(layers, len(modules), "layer")}
        self._checked: set[int] = set()
        self._stack = ExitStack()

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
                "nothing was recorded: call the model inside the recorder's with block, from its thread "
                "(compiled models are not seen)"
            )
        return self._calls[layer]

    def mean(self, call: int = 0) -> Tensor:
        """(B, R, K): the mean over the recorded heads and layers of one call."""
        return torch.stack([self.calls(layer)[call].mean(1) for layer in self.layers]).mean(0)

    def __enter__(self) -> AttentionRecorder:
        self._stack.enter_context(intercept_attention(self._model, self._record, self.layers))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _record(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad():
            weights, visible = _softmax(call, self._rows, self.heads)
        self._calls[call.layer].append(weights)
        returned = call.run()
        if call.layer not in self._checked and not call.settings.get("dropout"):
            self._check(call, weights, visible, returned[0].detach())
            self._checked.add(call.layer)
        return returned

    def _check(self, call: AttentionCall, weights: Tensor, visible: Tensor, output: Tensor) -> None:
        """Raise LitEveError unless the kernel's output (B, Q, h, d) is that of the probabilities, but for padding."""
        place = torch.tensor(indices(self._rows, output.shape[1], "row", distinct=False), device=output.device)  # (R,)
        value = call.value.repeat_interleave(output.shape[2] // call.value.shape[1], dim=1)[:, self.heads]  # (B, h, K, d)
        real = visible.any(-1)
        if call.mask is not None and call.mask.ndim == 2:  # behind the end of a sample, these kernels return nothing
            real = real & call.mask.bool()[:, None, place + call.key.shape[2] - output.shape[1]]
        real = real.expand(weights.shape[:3])  # (B, h, R)
        if real.any():
            check_output(call, (weights @ value.float())[real], output.transpose(1, 2)[:, self.heads][:, :, place][real])


def check_output(call: AttentionCall, expected: Tensor, output: Tensor) -> None:
    """Raise LitEveError unless the kernel's output is what was expected, both (..., d), but for rounding."""
    # Scores in half precision, TF32 in float32.
    tolerance = (0.01 if call.value.dtype == torch.float32 else 0.1) * output.abs().max()
    if not (expected.float() - output.float()).abs().max() <= tolerance:
        raise LitEveError(
            f"{type(call.module).__name__} of layer {call.layer} does not compute the causal softmax attention that is known "
            "here: what it looks at cannot be told"
        )


def probabilities(call: AttentionCall, rows: Sequence[int] | None = None, heads: Sequence[int] | None = None) -> Tensor:
    """The softmax that the kernel computes, from what the kernel is given.

    Args:
        call: what the kernel is given.
        rows: query positions, negative ones from the end; None: all.
        heads: from 0; None: all.

    Returns:
        (B, h, R, K) float32, differentiable.

    Raises:
        LitEveError: the family does something to its scores that is not known here, or there is no such row.
    """
    return _softmax(call, rows, heads)[0]


_UNKNOWN = {
    "softcap": "caps its attention scores",
    "s_aux": "has attention sinks",
    "sinks": "has attention sinks",
    "position_bias": "adds a bias to its attention scores",
}


def _softmax(call: AttentionCall, rows: Sequence[int] | None, heads: Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """The probabilities (B, h, R, K), and which keys may be looked at: bool, broadcastable to them."""
    query, key, mask, settings = call.query, call.key, call.mask, call.settings
    for name, what in _UNKNOWN.items():
        if settings.get(name) is not None:
            raise LitEveError(f"{type(call.module).__name__} {what}: its attention cannot be recorded")
    looks_ahead = not settings.get("is_causal", getattr(call.module, "is_causal", True))
    if looks_ahead and (mask is None or mask.ndim != 4):  # a mask of all pairs says itself what is seen
        raise LitEveError(
            f"{type(call.module).__name__} of layer {call.layer} does not compute the causal softmax attention that is known "
            "here: it looks ahead"
        )
    length = query.shape[2]
    place = torch.tensor(indices(rows, length, "row", distinct=False), device=query.device)  # (R,)
    query = query[:, :, place]  # (B, h, R, d)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)  # (B, h, K, d)
    if heads is not None and list(heads) != list(range(query.shape[1])):  # no copy of all
        query, key = query[:, heads], key[:, heads]
        mask = mask[:, heads] if mask is not None and mask.ndim == 4 and mask.shape[1] > 1 else mask
    packed = _packed(call.query, **settings)
    visible = _visible(place, length, key.shape[2], mask, settings.get("sliding_window"), packed)
    scaling = settings.get("scaling")
    scores = query.float() @ key.float().transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if mask is not None and mask.ndim == 4 and mask.is_floating_point() and packed is None:  # it may hold a bias
        scores = scores + mask[:, :, place, : key.shape[2]].float()
    return scores.masked_fill(~visible, torch.finfo(scores.dtype).min).softmax(-1), visible


def _packed(
    query: Tensor, packed: PackedRows | None = None, cu_seq_lens_q: Tensor | None = None, **_: Any
) -> PackedRows | None:
    """Where the samples of packed rows are, however the kernel is told of their boundaries; None if it is not."""
    if packed is None and cu_seq_lens_q is not None:  # transformers' flash attentions
        packed = PackedRows(cu_seq_lens_q, query.shape[2], query.shape[0], query.shape[2], kernel="")
    return packed


def _visible(
    rows: Tensor, length: int, keys: int, mask: Tensor | None, window: int | None, packed: PackedRows | None
) -> Tensor:
    """Which keys the chosen rows may look at, whatever form the kernel's mask has: bool, broadcastable to (B, h, R, K)."""
    if packed is not None:  # a mask that comes with them is not read by the kernel either
        return packed.visible(rows, window)
    if mask is not None and mask.ndim == 4:
        mask = mask[:, :, rows, :keys]
        return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    place = torch.arange(keys, device=rows.device)
    row = (rows + keys - length)[:, None]  # (R, 1): the last query stands at the last key
    visible = place <= row  # (R, K)
    if window is not None:
        visible &= place > row - window
    if mask is not None:  # (B, K) of the flash kernels, 0 at padding
        return (visible & mask[:, None].bool())[:, None]
    return visible
