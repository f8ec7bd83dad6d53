"""Hidden states, queries, keys and values, and what each block adds, recorded while the model runs as it always does.

    with ActivationRecorder(model, ["hidden", "mlp"], layers=[0, -1]) as recorder:
        model(**inputs)
    last = recorder.calls("hidden", -1)[0]       # (B, T, D)

Sites:

    input       (B, R, D)       what a block is given: the residual stream before it
    attention   (B, R, D)       what its attention adds to the residual stream
    mlp         (B, R, D)       what its feed-forward part adds
    hidden      (B, R, D)       what it returns: input + attention + mlp
    query       (B, h, R, d)    as the kernel gets them: rotated and normalised
    key, value  (B, kv, R, d)   the same, of this call only, not those of the KV cache before it

Notation: B rows of the batch, R recorded positions of a call, D width, h heads, kv heads of keys, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_eve.errors import LitEveError
from lit_eve.interpretation.recording.intercept import (
    AttentionCall,
    attention_modules,
    in_this_thread,
    indices,
    intercept_attention,
)
from lit_eve.models.decoders import blocks_of, decoder_of

PROJECTED = ("query", "key", "value")
ADDED = ("attention", "mlp")
SITES = ("input", *ADDED, "hidden", *PROJECTED)


class ActivationRecorder:
    """Context manager that records what blocks of a model's decoder compute, in calls by the thread that entered it.

    Args:
        model: EVE, or any causal language model of transformers whose blocks have ``self_attn`` and ``mlp``.
        sites: of `SITES`.
        layers: decoder layers, negative ones from the end; None: all.
        rows: positions of each call of the model, negative ones from the end; None: all.

    Raises:
        LitEveError: there is no such site or layer, or the model has no part that a site needs. On the first call: what a block
            adds is not what its parts return (a family that scales them, say), so that it cannot be recorded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sites: Sequence[str] = ("hidden",),
        layers: Sequence[int] | None = None,
        rows: int | Sequence[int] | None = None,
    ) -> None:
        if unknown := [site for site in sites if site not in SITES]:
            raise LitEveError(f"there is no site {unknown[0]!r}; there are {', '.join(SITES)}")
        self._blocks = blocks_of(decoder_of(getattr(model, "language_model", model)))
        self._model = model
        self._rows = [rows] if isinstance(rows, int) else rows
        self.num_layers = len(self._blocks)
        self.layers = indices(layers, self.num_layers, "layer")
        self.sites = tuple(dict.fromkeys(sites))
        self._calls: dict[tuple[str, int], list[Tensor]] = {(site, layer): [] for site in sites for layer in self.layers}
        self._parts = {layer: _parts(self._blocks[layer]) for layer in self.layers} if {*sites} & {*ADDED} else {}
        if {*sites} & {*PROJECTED}:
            attention_modules(model)
        self._checked: set[int] = set()
        self._stack = ExitStack()

    def calls(self, site: str, layer: int) -> list[Tensor]:
        """One tensor per call of the model, of the shape of the site, in the model's dtype, on its device.

        ``generate`` calls it with the prompt first, then once per token.

        Raises:
            LitEveError: that is not recorded, or the model was not called.
        """
        layer = layer + self.num_layers if layer < 0 else layer
        if (site, layer) not in self._calls:
            raise LitEveError(f"{site} of layer {layer} is not recorded; recorded are {self.sites} of the layers {self.layers}")
        if not self._calls[site, layer]:
            raise LitEveError(
                "nothing was recorded: call the model inside the recorder's with block, from its thread "
                "(compiled models are not seen)"
            )
        return self._calls[site, layer]

    def __enter__(self) -> ActivationRecorder:
        try:
            for layer in self.layers:
                self._watch(layer)
            if {*self.sites} & {*PROJECTED}:
                self._stack.enter_context(intercept_attention(self._model, self._read_projected, self.layers))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _watch(self, layer: int) -> None:
        """Hooks at a block and at the parts whose output it adds."""
        block, seen = self._blocks[layer], dict[str, Tensor]()

        def before(_module: nn.Module, arguments: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.clear()
            seen["input"] = arguments[0] if arguments else kwargs["hidden_states"]

        def part(site: str) -> Callable[[nn.Module, Any, Any], None]:
            def read(_module: nn.Module, _inputs: Any, output: Any) -> None:
                seen[site] = _first(output)

            return read

        def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
            seen["hidden"] = _first(output)
            if layer in self._parts and layer not in self._checked:
                _check_sum(block, seen)
                self._checked.add(layer)
            for site in self.sites:
                if site in seen:
                    self._keep(site, layer, seen[site], 1)
            seen.clear()

        handles = [block.register_forward_pre_hook(in_this_thread(before), with_kwargs=True)]
        handles += [block.register_forward_hook(in_this_thread(after))]
        parts = self._parts.get(layer, {}).items()
        handles += [module.register_forward_hook(in_this_thread(part(site))) for site, module in parts]
        for handle in handles:
            self._stack.callback(handle.remove)

    def _read_projected(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        new = call.query.shape[2]
        tensors = {"query": call.query, "key": call.key[:, :, -new:], "value": call.value[:, :, -new:]}
        for site in {*self.sites} & {*PROJECTED}:
            self._keep(site, call.layer, tensors[site], 2)
        return call.run()

    def _keep(self, site: str, layer: int, tensor: Tensor, axis: int) -> None:
        """The chosen rows; a copy, so that the rest of the tensor is not held."""
        tensor = tensor.detach()
        rows = torch.tensor(indices(self._rows, tensor.shape[axis], "row", distinct=False), device=tensor.device)
        self._calls[site, layer].append(tensor.index_select(axis, rows))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _parts(block: nn.Module) -> dict[str, nn.Module]:
    """The modules whose output a block adds to the residual stream: attention and MLP, or the norms behind them."""
    names = {"attention": "self_attn", "mlp": "mlp"}
    if hasattr(block, "post_feedforward_layernorm"):  # Gemma 2 and 3, OLMo 2
        names = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
    for site, name in names.items():
        if not hasattr(block, name):
            raise LitEveError(f"{type(block).__name__} has no {name}: what its {site} adds cannot be recorded")
    return {site: getattr(block, name) for site, name in names.items()}


def _check_sum(block: nn.Module, seen: dict[str, Tensor]) -> None:
    """Raise LitEveError unless the block returns what it was given and what its parts add."""
    exact = torch.promote_types(seen["hidden"].dtype, torch.float32)
    total = seen["input"].to(exact) + sum(seen[site].to(exact) for site in ADDED)
    found = seen["hidden"].to(exact)
    tolerance = 32 * torch.finfo(seen["hidden"].dtype).eps * total.abs().max().clamp(min=1)
    if (total - found).abs().max() > tolerance:
        raise LitEveError(
            f"{type(block).__name__} does not return the sum of its input, its attention and its MLP: "
            "what they add cannot be recorded"
        )
