"""Hidden states, queries, keys, values and what blocks add, compared with what transformers says of itself."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    LlamaConfig,
    Olmo2Config,
    Qwen3Config,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import LitEveError
from lit_eve.interpretation import ActivationRecorder, AttentionRecorder
from lit_eve.interpretation.recording import SITES
from lit_eve.interpretation.recording.activations import PROJECTED
from lit_eve.models import PACKED, EveConfig, EveForConditionalGeneration
from tests.interpretation.recording.test_attention import MASK, SIZE, TEXT

DECODERS = {
    "llama": LlamaConfig(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=16),
    "gemma2": Gemma2Config(**SIZE, head_dim=16, attn_logit_softcapping=None, final_logit_softcapping=None),
    "olmo2": Olmo2Config(**SIZE),
    "cohere": CohereConfig(**SIZE),  # attention and MLP side by side
}


def make_model(config) -> EveForConditionalGeneration:
    torch.manual_seed(0)
    return EveForConditionalGeneration(
        EveConfig(
            text_config=config.to_dict(),
            patch_embedding={"name": "eve_v1", "width": 16},
            geometry={"image_size": 32, "patch_size": 4, "cells": 4},
            pad_token_id=0,
            eos_token_id=49,
        )
    ).eval()


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_hidden_states_are_transformers_own_and_the_sum_of_what_blocks_add(name: str) -> None:
    model = make_model(DECODERS[name])
    plain = model(TEXT, attention_mask=MASK, output_hidden_states=True)
    with ActivationRecorder(model, SITES) as recorder:
        recorded = model(TEXT, attention_mask=MASK)
    assert torch.equal(plain.logits, recorded.logits)
    for layer in range(2):  # behind the last block stands the norm
        assert torch.equal(recorder.calls("hidden", layer)[0], plain.hidden_states[layer + 1])
        assert torch.equal(recorder.calls("input", layer)[0], plain.hidden_states[layer])
    for layer in range(3):
        found = {site: recorder.calls(site, layer)[0] for site in SITES}
        torch.testing.assert_close(found["input"] + found["attention"] + found["mlp"], found["hidden"])
        assert found["attention"].abs().max() > 0.01 and found["mlp"].abs().max() > 0.01
        assert found["query"].shape[:3] == (2, 4, 8) and found["key"].shape[:3] == found["value"].shape[:3] == (2, 2, 8)


@pytest.mark.parametrize("implementation", [PACKED, "sdpa", "eager"])
@torch.no_grad()
def test_queries_keys_and_values_give_the_attention(implementation: str) -> None:
    model = make_model(DECODERS["llama"])
    model.language_model.set_attn_implementation(implementation)
    with (
        ActivationRecorder(model, ["query", "key", "value", "attention"]) as recorder,
        AttentionRecorder(model, rows=None) as weights,
    ):
        model(TEXT)
    for layer, block in enumerate(model.get_decoder().layers):
        value = recorder.calls("value", layer)[0].repeat_interleave(2, 1)
        scores = recorder.calls("query", layer)[0] @ recorder.calls("key", layer)[0].repeat_interleave(2, 1).transpose(2, 3)
        future = torch.ones(8, 8).triu(1).bool()
        softmax = (scores * 8**-0.5).masked_fill(future, -torch.inf).softmax(-1)
        torch.testing.assert_close(softmax, weights.calls(layer)[0])
        mixed = (softmax @ value).transpose(1, 2).flatten(2)  # (B, T, h * d)
        torch.testing.assert_close(block.self_attn.o_proj(mixed), recorder.calls("attention", layer)[0])


@torch.no_grad()
def test_generation_gives_one_call_per_token_of_the_new_positions_alone() -> None:
    model = make_model(DECODERS["llama"])
    with ActivationRecorder(model, ["hidden", "key"], layers=[-1]) as recorder:
        tokens = model.generate(TEXT, attention_mask=MASK, max_new_tokens=4, do_sample=False, eos_token_id=None)
    mask = torch.cat([MASK, torch.ones(2, 3, dtype=torch.long)], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with ActivationRecorder(model, ["hidden", "key"], layers=[-1]) as whole:
        model(tokens[:, :-1], attention_mask=mask, position_ids=positions)
    real = mask.bool()
    for site, axis in (("hidden", 1), ("key", 2)):
        calls = recorder.calls(site, -1)
        assert [call.shape[axis] for call in calls] == [8, 1, 1, 1]
        found, expected = torch.cat(calls, axis), whole.calls(site, 2)[0]
        if site == "key":
            found, expected = found.transpose(1, 2), expected.transpose(1, 2)
        torch.testing.assert_close(found[real], expected[real], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_packed_samples_are_recorded_as_if_alone() -> None:
    model = make_model(DECODERS["llama"])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 1]])
    with ActivationRecorder(model, SITES) as recorder:
        model(TEXT, position_ids=positions, cu_seqlens=torch.tensor([0, 3, 8, 14, 16], dtype=torch.int32))
    for row, start, stop in [(0, 0, 3), (0, 3, 8), (1, 0, 6), (1, 6, 8)]:
        with ActivationRecorder(model, SITES) as alone:
            model(TEXT[row : row + 1, start:stop])
        for site in SITES:
            found, expected = recorder.calls(site, 1)[0][row], alone.calls(site, 1)[0][0]
            place = (slice(None), slice(start, stop)) if site in PROJECTED else slice(start, stop)
            torch.testing.assert_close(found[place], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_only_the_chosen_rows_are_held() -> None:
    model = make_model(DECODERS["llama"])
    with (
        ActivationRecorder(model, ["hidden"], layers=[1]) as whole,
        ActivationRecorder(model, ["hidden", "query"], [1], [2, -1]) as few,
    ):
        model(TEXT)
    found = few.calls("hidden", 1)[0]
    assert torch.equal(found, whole.calls("hidden", 1)[0][:, [2, 7]])
    assert found.untyped_storage().nbytes() == found.numel() * 4
    assert few.calls("query", -2)[0].shape == (2, 4, 2, 8)


def test_nothing_is_left_behind_even_after_an_exception() -> None:
    model = make_model(DECODERS["llama"])
    with pytest.raises(LitEveError, match="there is no row 8: there are 8"), ActivationRecorder(model, SITES, rows=8):
        model(TEXT)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not ALL_ATTENTION_FUNCTIONS._local_mapping


def test_what_cannot_be_recorded_is_refused() -> None:
    model = make_model(DECODERS["llama"])
    with pytest.raises(LitEveError, match="there is no site 'logits'; there are input, attention"):
        ActivationRecorder(model, ["logits"])
    with pytest.raises(LitEveError, match="there is no layer 3: there are 3"):
        ActivationRecorder(model, layers=[3])
    with pytest.raises(LitEveError, match="layer 2 is chosen twice"):  # each call would be recorded twice
        ActivationRecorder(model, layers=[2, -1])
    with pytest.raises(LitEveError, match="no layer is chosen; None chooses all of them"):
        ActivationRecorder(model, layers=[])
    with ActivationRecorder(model, ["mlp"], layers=[0]) as recorder, pytest.raises(LitEveError, match="nothing was recorded"):
        recorder.calls("mlp", 0)
    with pytest.raises(LitEveError, match="hidden of layer 0 is not recorded; recorded are .'mlp',. of the layers .0."):
        recorder.calls("hidden", 0)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16))
    with pytest.raises(LitEveError, match="GPT2Block has no self_attn: what its attention adds cannot be recorded"):
        ActivationRecorder(gpt2, ["mlp"])
    with ActivationRecorder(gpt2) as recorder:  # its hidden states can
        gpt2(TEXT)
    assert recorder.calls("hidden", 0)[0].shape == (2, 8, 16)
    granite = make_model(GraniteConfig(**SIZE, residual_multiplier=0.5))
    with pytest.raises(LitEveError, match="GraniteDecoderLayer does not return the sum"), ActivationRecorder(granite, ["mlp"]):
        granite(TEXT)
