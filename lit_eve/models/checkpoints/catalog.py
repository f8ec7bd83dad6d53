"""Shapes of the language models and vision encoders that recipes name, so that a plan can be made without a network.

Numbers from the models' published ``config.json``. Training never uses them: it reads the config that comes with the weights.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

_DECODERS: dict[str, dict[str, Any]] = {
    "lmsys/vicuna-7b-v1.5": {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "HuggingFaceTB/SmolLM2-360M-Instruct": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-1.5B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2",
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
    },
    "Qwen/Qwen3-1.7B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-4B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-8B": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
    },
    "mistralai/Mistral-7B-v0.1": {
        "model_type": "mistral",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "runs/mono_internvl/decoder": {  # internlm/internlm2-chat-1_8b as docs/decoders.md copies it
        "model_type": "llama",
        "vocab_size": 92546,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32768,
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
    "adept/persimmon-8b-base": {
        "model_type": "persimmon",
        "vocab_size": 262144,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "max_position_embeddings": 16384,
        "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0, "partial_rotary_factor": 0.5},
    },
}

_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}

_TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        **_LARGE,
        "intermediate_size": 4096,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "google/siglip-so400m-patch14-384": {"model_type": "siglip_vision_model", **_SO400M, "image_size": 384, "patch_size": 14},
    "google/siglip2-so400m-patch16-384": {"model_type": "siglip_vision_model", **_SO400M, "image_size": 384, "patch_size": 16},
    "facebook/dinov2-large": {"model_type": "dinov2", **_LARGE, "image_size": 518, "patch_size": 14},
    "facebook/dinov2-with-registers-large": {
        "model_type": "dinov2_with_registers",
        **_LARGE,
        "image_size": 518,
        "patch_size": 14,
        "num_register_tokens": 4,
    },
    "facebook/dinov3-vitl16-pretrain-lvd1689m": {
        "model_type": "dinov3_vit",
        **_LARGE,
        "intermediate_size": 4096,
        "image_size": 224,
        "patch_size": 16,
        "num_register_tokens": 4,
    },
}


def decoder_names() -> list[str]:
    """Hub names of all decoders that are listed."""
    return [name for name in _DECODERS if name.count("/") == 1]


def known_decoder(name: str) -> PreTrainedConfig | None:
    """The shape of a decoder by its hub name; None for one that is not listed."""
    fields = _DECODERS.get(name)
    return None if fields is None else AutoConfig.for_model(**fields)


def known_tower(name: str) -> PreTrainedConfig | None:
    """The shape of a vision encoder's vision half by its hub name; None for one that is not listed."""
    fields = _TOWERS.get(name)
    return None if fields is None else AutoConfig.for_model(**fields)
