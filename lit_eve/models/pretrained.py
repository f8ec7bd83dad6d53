"""What transformers asks of a model: its embeddings, casts that keep exact buffers exact, blocks that are computed again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_eve.errors import ConfigError
from lit_eve.models.checkpoints.skeletons import restore_buffers
from lit_eve.models.config import EveConfig
from lit_eve.models.decoders import decoder_of
from lit_eve.models.generation.answer_ends import end_answers
from lit_eve.processing import EveProcessor

_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class EvePreTrainedModel(PreTrainedModel):
    """EVE as transformers' loader, ``generate`` and Trainer see it. A subclass has ``language_model``, a causal LM."""

    config_class = EveConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, whose loader does not know what the constructors of our parts computed.

        Answers end where the tokenizer and the template beside the model say so too: not all configs name all ends.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        restore_buffers(model)
        if pretrained_model_name_or_path is not None:
            with suppress(OSError, ValueError):  # there is no tokenizer, or it is one of a template that is still unknown
                where = {key: kwargs[key] for key in _OF_THE_HUB if key in kwargs}
                end_answers(model, EveProcessor.from_pretrained(pretrained_model_name_or_path, **where))
        return loaded

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EvePreTrainedModel:
        # Moves and casts. A cast to bfloat16 would round the rotary frequencies too, and turn far positions by a radian.
        exact = {
            (module, name): module._buffers[name] for module in self.modules() for name in module._non_persistent_buffers_set
        }
        super()._apply(fn, recurse)
        for (module, name), buffer in exact.items():
            if buffer is not None and module._buffers[name].dtype != buffer.dtype:
                module._buffers[name] = buffer.to(module._buffers[name].device)
        return self

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Torch's own initialisation, as upstream; the language model initialises itself.
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embedding."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The decoder's lm_head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's lm_head."""
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """The language model without its head."""
        return decoder_of(self.language_model)

    def set_use_kernels(self, use_kernels: bool, *args: Any, **kwargs: Any) -> None:
        """As in transformers, which replaces forwards of modules by kernels of the hub.

        Raises:
            ConfigError: modules of the decoder have more weights than their own, which a kernel would pass over, or positions
                that kernels were not tried with.
        """
        if use_kernels and self.config.lora is not None:
            raise ConfigError("use_kernels: kernels would pass over adapters (lora); merge them first")
        if use_kernels and (kind := self.config.decoder_kind["name"]) != "dense":
            raise ConfigError(f"use_kernels: kernels would pass over what a decoder of the kind {kind!r} adds to its modules")
        if use_kernels and not self.positions.is_sequential:
            raise ConfigError(f"use_kernels: kernels were not tried with positions {self.config.positions['name']!r}")
        super().set_use_kernels(use_kernels, *args, **kwargs)

    def recompute_blocks(self, on: bool = True) -> None:
        """Compute the decoder's blocks again in the backward pass, for less memory, or keep what is inside them."""
        what = "activation" if hasattr(self, "activation_checkpointing_enable") else "gradient"  # as transformers called it
        if on:
            getattr(self, f"{what}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(self, f"{what}_checkpointing_disable")()
