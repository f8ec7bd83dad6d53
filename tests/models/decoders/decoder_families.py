"""A tiny config of every family that transformers can build a causal language model of."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

FAMILIES = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCAB, LAYERS = 64, 4

# Given to a family where its config has the field.
_SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "sliding_window": 6,
    "attention_chunk_size": 6,
    "index_topk": 4,
    "rotary_dim": 8,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    # mixtures of experts
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "qk_head_dim": 16,
    # recurrent layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
    "state_size": 8,
    "expand": 2,
    "time_step_rank": 4,
    "num_heads": 4,
    "n_groups": 1,
    "chunk_size": 8,
    # what families multiply or cap; the defaults of many are 1
    "logits_scaling": 4.0,
    "logit_scale": 0.25,
    "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 5.0,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.2,
    "lm_head_multiplier": 0.3,
    "key_multiplier": 0.6,
}
_LATENT = (  # their latent attention has as many keys as queries
    *("axk1", "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa"),
    *("kimi_linear", "longcat_flash", "minicpm3", "youtu"),
)
_HYBRID = ["linear_attention", "full_attention"] * 2
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(_LATENT, {"num_key_value_heads": 4}),
    "bailing_hybrid": {
        "num_key_value_heads": 4,
        "num_expert_group": 1,
        "num_experts_per_token": 2,
        "num_nextn_predict_layers": 0,
        "head_dim": ...,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "first_k_dense_replace": 1,
        "layer_group_size": 2,
    },
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
        "logit_scale": 0.25,
    },
    "cpmant": {"hidden_size": 32, "dim_head": 8, "dim_ff": 48, "position_bias_max_distance": 64},
    "ctrl": {"n_embd": 32, "dff": 48, "n_layer": LAYERS, "n_head": 4},
    "dbrx": {
        "hidden_size": ...,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": LAYERS,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "num_hidden_layers": ...,
        "num_attention_heads": ...,
        "num_key_value_heads": ...,
    },
    "deepseek_v2": {"num_key_value_heads": 4, "topk_method": "greedy", "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "num_key_value_heads": 2},
    "falcon_h1": {"ssm_multipliers": [0.5, 0.6, 0.7, 0.8, 0.9], "mlp_multipliers": [0.8, 1.2]},
    "falcon": {"head_dim": ..., "num_kv_heads": 2, "new_decoder_architecture": True},
    "gemma3n_text": {
        "intermediate_size": [48] * LAYERS,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 8,
    },
    "gemma4_text": {
        "head_dim": ...,
        "per_layer_config": {},
        "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8,
    },
    "gemma4_unified_text": {"head_dim": ..., "per_layer_config": {}, "num_kv_shared_layers": 0},
    "gpt_neo": {
        "num_layers": LAYERS,
        "num_hidden_layers": ...,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 6,
    },
    "granitemoehybrid": {
        "layer_types": _HYBRID,
        "layers_block_type": ...,
        "shared_intermediate_size": 24,
        "position_embedding_type": "rope",
    },
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "moe_topk": 2},
    "inkling_text": {},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
    },
    "kimi_linear": {
        "num_key_value_heads": 4,
        "head_dim": ...,
        "num_experts_per_token": 2,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2, "full_attn_idxs": ..., "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"hidden_size": 32, "num_heads": 4, "head_dim": 16},
    "ministral": {"head_dim": 8},
    "minicpm3": {"num_key_value_heads": 4, "logits_scaling": ...},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "use_mamba_kernels": False,
        "num_hidden_layers": ...,
    },
    "xlstm": {"v_head_dim": ..., "hidden_size": 32, "embedding_dim": 32, "num_blocks": LAYERS},
    "zamba": {
        "num_hidden_layers": 6,
        "layer_types": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "layers_block_type": ...,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "use_mamba_kernels": False,
        "mamba_dt_rank": 4,
    },
    "zamba2": {
        "num_hidden_layers": 6,
        "layer_types": ["linear_attention", "linear_attention", "hybrid"] * 2,
        "layers_block_type": ...,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "kv_channels": 8,
        "num_query_groups": 4,
        "hybrid_layer_ids": [2, 5],
        "use_mamba_kernels": False,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
_LISTS = ("layer_types", "mlp_layer_types", "layers_block_type")  # one entry per layer


def tiny_config(family: str, **changes: Any) -> PreTrainedConfig:
    """The family's config at its smallest, with every kind of layer, windows, experts, scales and caps where it has them."""
    kind = CONFIG_MAPPING[family]
    default = kind()
    fields = {key: getattr(kind, kind.attribute_map.get(key, key), None) for key in (*_SMALL, *_LISTS)}
    fixed = {key for key, field in fields.items() if isinstance(field, property) and field.fset is None}
    known = {key: value for key, value in _SMALL.items() if getattr(default, key, None) is not None and key not in fixed}
    for key in _LISTS:
        if key not in fixed and isinstance(given := getattr(default, key, None), list):
            kinds = list(dict.fromkeys(given))
            known[key] = [kinds[index % len(kinds)] for index in range(LAYERS)]
    fields = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **known, **_OWN.get(family, {}), **changes}
    return kind(**{key: value for key, value in fields.items() if value is not ...})


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """transformers' own model with weights that are larger than usual, so that differences show."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model
