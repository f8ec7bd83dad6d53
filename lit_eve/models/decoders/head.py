"""From hidden states to logits, as each family does it.

A family may scale its logits (granite, cohere), cap them (gemma2) or do something else behind its ``lm_head``. All of that
stands in the forward of its causal language model, behind the decoder. So this forward is run with a decoder that returns the
hidden states that it is given: whatever a family does with them is done here, and none of it is written down a second time.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


class _States(BaseModelOutputWithPast):
    """Output of a decoder; what some decoders return besides (router logits, caches of other names) is None."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Given(nn.Module):
    """Stands where the decoder stood; all but its forward is the decoder's."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.__dict__["decoder"] = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["decoder"], name)

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _States:
        return _States(last_hidden_state=inputs_embeds)


class FamilyHead:
    """Logits of hidden states, (..., D) -> (..., V): the ``lm_head`` and everything that the family does behind it.

    Holds the language model's own modules, and looks for itself whether they were replaced (a resized or wrapped ``lm_head``).

    Args:
        language_model: a causal language model of transformers.
        decoder: the part of it that is left out.
    """

    def __init__(self, language_model: PreTrainedModel, decoder: nn.Module) -> None:
        self._language_model = language_model
        self._path = next(name for name, module in language_model.named_modules() if module is decoder).split(".")
        self._build()

    def _build(self) -> None:
        self._modules = dict(self._language_model._modules)
        self._model = _replaced(self._language_model, self._path)

    def __call__(self, hidden_states: Tensor) -> Tensor:
        """(..., D) behind the final norm -> (..., V)."""
        if not torch.compiler.is_compiling() and self._modules != self._language_model._modules:
            self._build()
        rows = hidden_states.flatten(0, -2)[None]  # (1, N, D)
        logits = self._model.forward(inputs_embeds=rows, use_cache=False, return_dict=True).logits  # (1, N, V)
        return logits[0].unflatten(0, hidden_states.shape[:-1])


def _replaced(module: nn.Module, path: list[str]) -> nn.Module:
    """A shallow copy of ``module`` in which the child at the end of ``path`` is a :class:`_Given`."""
    shallow = copy.copy(module)
    child = module._modules[path[0]]
    child = _replaced(child, path[1:]) if len(path) > 1 else _Given(child)
    shallow.__dict__["_modules"] = {**module._modules, path[0]: child}
    return shallow
