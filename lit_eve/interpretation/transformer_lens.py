"""EVE in TransformerLens (extra ``interp``): its hooks and its cache at every point inside the decoder, images and all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lit_eve.errors import LitEveError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from lit_eve.models import EveForConditionalGeneration
    from lit_eve.processing import EveProcessor


def transformer_lens_bridge(model: EveForConditionalGeneration, processor: EveProcessor) -> TransformerBridge:
    """TransformerLens' bridge around a model; the decoder's own adapter says where its parts are.

        model, processor = lit_eve.load("runs/nano/model", attn_implementation="eager")
        bridge = transformer_lens_bridge(model, processor)
        logits, cache = bridge.run_with_cache(inputs.pop("input_ids"), **inputs)
        cache["blocks.0.attn.hook_pattern"]  # (B, heads, T, T)

    Args:
        model: loaded with ``attn_implementation="eager"``: only that attention has the probabilities that hooks see. Its
            modules are replaced by TransformerLens' own; load another one for other work.
        processor: of the model.

    Raises:
        LitEveError: TransformerLens is not installed or does not know the decoder, or the attention is not eager.
    """
    if (kind := model.config.decoder_kind["name"]) != "dense":
        raise LitEveError(f"TransformerLens does not know decoders of the kind {kind!r}: it computes blocks in its own way")
    if model.config.lora is not None:
        raise LitEveError("TransformerLens does not know adapters (lora): lit_eve.load(..., merge=True) merges them")
    if not model.image_attention.is_causal:
        raise LitEveError("TransformerLens was not tried with images that are not read like text (image_attention)")
    if not model.positions.is_sequential:
        raise LitEveError("TransformerLens counts tokens by itself, and this model does not (positions)")
    try:
        from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    except ImportError as error:
        raise LitEveError(f"TransformerLens from version 4.3 on is needed: pip install transformer-lens ({error})") from error
    architecture = type(model.language_model).__name__
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise LitEveError(f"TransformerLens does not know the decoder {architecture}")
    if (attention := model.config.text_config._attn_implementation) != "eager":
        raise LitEveError(f'the attention is {attention!r}: lit_eve.load(..., attn_implementation="eager") is needed')

    def inside_eve(adapter: Any) -> None:
        for component in adapter.component_mapping.values():
            component.name = f"language_model.{component.name}"
        adapter.cfg.is_multimodal = True

    return build_bridge_from_module(
        model,
        architecture,
        hf_config=model.config.text_config,
        tokenizer=processor.tokenizer,
        post_adapter_hook=inside_eve,
    )
