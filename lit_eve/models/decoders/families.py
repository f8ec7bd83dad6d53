"""Which decoder families of transformers are right inside EVE, and why the others are refused.

Every name was tried (``tests/models/decoders/test_every_decoder.py``): loss and logits are those of transformers' own model;
samples of packed rows, rows of a left-padded batch and steps with a KV cache give what a sample gives alone. Families of no
list are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lit_eve.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel


def _names(text: str) -> set[str]:
    return set(text.split())


PACKED = _names("""
    apertus arcee aria_text axk1 beam bitnet cohere cohere2 cohere2_moe cohere_compass_text cwm dbrx deepseek_v2 deepseek_v3
    diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe flex_olmo gemma gemma3_text glm glm4 glm4_moe glm4_moe_lite
    gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3
    iquestcoder jais2 jetmoe kolibri1 laguna llama mellum minicpm3 minimax_m2 ministral ministral3 mistral mixtral
    modernbert-decoder nanochat olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss
    smollm3 solar_open starcoder2 youtu
""")
"""They mix tokens by attention alone, which keeps the samples of packed rows apart (``lit_eve/models/attention/``)."""

SIDE_BY_SIDE = _names("""
    afmoe axk2 bailing_hybrid bamba biogpt bloom codegen ctrl deepseek_v32 doge falcon falcon_h1 flint gemma2 glm_moe_dsa
    gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox_japanese gpt_oss gptj granite_swa granitemoe_swa granitemoehybrid hy_v4
    inkling2_text inkling_text jamba kimi_linear lfm2 lfm2_moe lfm3 llama4_text mimo_v2_flash minimax_m3_vl_text mpt
    nemotron nemotron_h olmo_hybrid opt qwen3_5_moe_text qwen3_5_text qwen3_next stablelm vaultgemma xglm zamba zamba2 zaya
""")
"""Right as well, once each sample of a packed row has a row to itself (:class:`~lit_eve.models.decoders.SideBySide`): they mix
tokens by recurrence, by convolution or by an attention of their own."""

TURNS_HALVES = _names("""
    apertus arcee aria_text axk1 bitnet cwm dbrx deepseek_v3 diffllama dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe
    flex_olmo gemma glm glm4 glm4_moe glm4_moe_lite gpt_neox granite granitemoe granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe kolibri1 llama minicpm3 minimax_m2 ministral
    ministral3 mistral mixtral nanochat olmo olmo2 olmoe persimmon phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss
    smollm3 solar_open starcoder2 youtu
""")
"""Of the packed ones, those with one rotary embedding for all layers that gives cosines and sines of (i, i + r / 2)
(``tests/models/positions/test_thw_of_every_decoder.py``)."""

POSITION_TABLES = _names("""
    biogpt codegen ctrl gpt-sw3 gpt2 gpt_bigcode gpt_neo gptj opt
""")
"""They look positions up in a table of ``max_position_embeddings`` rows: behind its end they cannot read at all."""

_REASONS = {
    "attends in both directions, but a decoder must not see the token that it predicts": """
        bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm
        roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod""",
    "is one half of an encoder-decoder, but EVE has no encoder": """
        bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp musicgen musicgen_melody pegasus plbart prophetnet
        trocr whisper""",
    "is multimodal itself; use a folder that holds its language model alone": """
        dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified git got_ocr2 llama4 mllama moshi moss_transcribe_diarize
        phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp""",
    "has no standard KV cache, in which generation keeps the images": """
        falcon_mamba mamba mamba2 minimax openai-gpt recurrent_gemma reformer rwkv xlstm""",
    "looks up token ids in its inner layers, but image tokens have none": """
        cpmant deepseek_v4 gemma3n_text gemma4_text qwen4_exp_text""",
    "has a number of blocks other than num_hidden_layers, which the aligner relies on": "hrm_text longcat_flash",
    "drafts tokens for another model": "gemma4_assistant gemma4_unified_assistant",
    "builds its tokens from bytes, which image tokens do not have": "blt",
    "has not passed the tests inside EVE": "dots3_note_text gemma4_unified_text",
}
REFUSED: dict[str, str] = {name: reason for reason, names in _REASONS.items() for name in _names(names)}
"""Why a family is refused."""

_WRONG_KEYS = {
    "use_bidirectional_attention": "it would see the words that it predicts",
    "output_router_logits": "the auxiliary loss of its routers is no part of EVE's; set it to false in its config.json",
    "add_cross_attention": "EVE has no encoder",
}


def check_decoder(config: PreTrainedConfig) -> None:
    """Refuse a decoder with which EVE would be wrong.

    Raises:
        ConfigError: its family is refused or unknown, or its config asks for what EVE does not do.
    """
    family = config.model_type
    decoder = f"a decoder of the family {family!r} cannot be used"
    if family not in PACKED | SIDE_BY_SIDE:
        unknown = f"is in no list of those that were proven to be right inside EVE ({__name__}.SIDE_BY_SIDE)"
        raise ConfigError(f"{decoder}: it {REFUSED.get(family, unknown)}")
    for key, reason in _WRONG_KEYS.items():
        if getattr(config, key, None):
            raise ConfigError(f"{decoder} with {key} = {getattr(config, key)!r}: {reason}")


def check_image_attention(config: PreTrainedConfig, name: str) -> None:
    """Refuse a decoder that cannot let the tokens of an image see each other.

    Args:
        config: the decoder's.
        name: of an image attention other than ``causal``.

    Raises:
        ConfigError: its family mixes tokens by other means than attention under a mask, or its config asks for such.
    """
    family = config.model_type
    if family not in PACKED:
        raise ConfigError(
            f"image_attention {name!r} is not for decoders of the family {family!r}: they mix tokens by recurrence, by "
            "convolution or by an attention of their own, which takes no mask of that kind"
        )


def keeps_samples_apart(config: PreTrainedConfig) -> bool:
    """Whether the decoder can read packed rows as they are."""
    return config.model_type in PACKED


def longest_sample(config: PreTrainedConfig) -> int | None:
    """How many tokens a sample may have at most; None if nothing says so."""
    limits = [getattr(config, "max_position_embeddings", None), *_lengths_of_one_scale(config)]
    return min((limit for limit in limits if limit is not None), default=None)


def reads_longer_samples(config: PreTrainedConfig) -> bool:
    """Whether the decoder can read a longer sample, and the others of its batch as they are alone."""
    return config.model_type not in POSITION_TABLES and not _lengths_of_one_scale(config)


def _lengths_of_one_scale(config: PreTrainedConfig) -> list[int]:
    """Up to how many tokens rotary frequencies stay the same, where they depend on the longest sample of a batch."""
    parameters = getattr(config, "rope_parameters", None) or {}
    lengths = []
    for one in [parameters, *parameters.values()]:  # of the decoder, or of each kind of layer
        kind = one.get("rope_type", "") if isinstance(one, dict) else ""
        if kind == "longrope":
            lengths.append(one.get("original_max_position_embeddings", config.max_position_embeddings))
        elif "dynamic" in kind:
            lengths.append(config.max_position_embeddings)
    return lengths


def embed_tokens(language_model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """What the decoder makes of token ids before its layers: (B, T) -> (B, T, D).

    Some families multiply word embeddings. In most of them the embedding module does so (gemma), and image tokens stay as they
    are, as in PaliGemma and Gemma 3; in some the decoder does, with words and images alike (granite), as in Granite Vision. The
    decoder of falcon_h1 does it with token ids only, which it is not given here.
    """
    embedded = language_model.get_input_embeddings()(input_ids)
    if language_model.config.model_type == "falcon_h1":
        embedded = embedded * language_model.config.embedding_multiplier
    return embedded
