"""Where a causal language model of transformers keeps its parts: every family has names of its own."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from lit_eve.errors import LitEveError


def decoder_of(language_model: PreTrainedModel) -> PreTrainedModel:
    """The language model without its head.

    Raises:
        LitEveError: it has no part that is a model of its own.
    """
    base = language_model.base_model
    for candidate in (language_model.get_decoder(), base, getattr(language_model, "model", None)):
        if isinstance(candidate, PreTrainedModel) and candidate is not language_model:
            return candidate
    raise LitEveError(f"{type(language_model).__name__} has no decoder that could be run without its head")


def final_norm_of(decoder: PreTrainedModel) -> nn.Module | None:
    """What normalises the output of the last block (``norm``, ``final_layernorm``); None where it has another name."""
    return next((getattr(decoder, name) for name in ("norm", "final_layernorm") if hasattr(decoder, name)), None)


def blocks_of(model: PreTrainedModel) -> nn.ModuleList:
    """The L blocks of a language model, with or without its head, whatever their name (``layers``, ``h``, ``blocks``).

    Raises:
        LitEveError: there is no list of that length.
    """
    decoder = decoder_of(model) if model.get_output_embeddings() is not None else model
    for module in decoder.children():
        if isinstance(module, nn.ModuleList) and len(module) == decoder.config.num_hidden_layers:
            return module
    raise LitEveError(f"{type(decoder).__name__} has no list of its {decoder.config.num_hidden_layers} blocks")
