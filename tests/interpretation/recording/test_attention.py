from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, GptOssConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import LitEveError
from lit_eve.interpretation import AttentionRecorder
from lit_eve.interpretation.recording.attention import _packed, _visible
from lit_eve.models import PACKED, EveConfig, EveForConditionalGeneration
from lit_eve.models.attention import kernels

SIZE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 49,
    "initializer_range": 0.5,  # large weights: attention far from uniform
}
DECODERS = {
    "llama": LlamaConfig(**SIZE),
    "qwen2": Qwen2Config(**SIZE),
    "qwen3": Qwen3Config(**SIZE, head_dim=16),
    "mistral window": MistralConfig(**SIZE, sliding_window=4),
}
TEXT = torch.tensor([[0, 0, 0, 5, 6, 7, 8, 9], [1, 2, 3, 4, 5, 6, 7, 8]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8])


def make_model(name: str = "llama") -> EveForConditionalGeneration:
    torch.manual_seed(0)
    config = EveConfig(
        text_config=DECODERS[name].to_dict(),
        patch_embedding={"name": "eve_v1", "width": 16},
        geometry={"image_size": 32, "patch_size": 4, "cells": 4},
        pad_token_id=0,
        eos_token_id=49,
    )
    return EveForConditionalGeneration(config).eval()


def eager_attentions(model: EveForConditionalGeneration, **inputs) -> list[torch.Tensor]:
    """Attention weights of each layer (B, h, T, T) from transformers' eager implementation."""
    before = model.config.text_config._attn_implementation
    model.language_model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return list(model.get_decoder()(**inputs, output_attentions=True).attentions)
    finally:
        model.language_model.set_attn_implementation(before)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("implementation", [PACKED, "sdpa", "eager"])
def test_probabilities_are_those_of_eager_attention_under_left_padding(name: str, implementation: str) -> None:
    model = make_model(name)
    expected = eager_attentions(model, input_ids=TEXT, attention_mask=MASK)
    model.language_model.set_attn_implementation(implementation)
    with torch.no_grad():
        plain = model(TEXT, attention_mask=MASK).logits
        with AttentionRecorder(model, rows=None) as recorder:
            recorded = model(TEXT, attention_mask=MASK).logits
    assert torch.equal(plain, recorded)
    assert recorder.layers == [0, 1, 2]
    real = MASK.bool()
    for layer, weights in enumerate(expected):
        found = recorder.calls(layer)[0]
        assert found.shape == (2, 4, 8, 8)
        torch.testing.assert_close(found.transpose(1, 2)[real], weights.transpose(1, 2)[real], atol=1e-6, rtol=1e-5)
    assert expected[0].std() > 0.1  # not the uniform attention of small weights


def test_only_the_chosen_layers_heads_and_rows_are_kept() -> None:
    model = make_model()
    weights = eager_attentions(model, input_ids=TEXT)
    with AttentionRecorder(model, layers=[-1, 0], heads=[3, 1], rows=[2, -1]) as recorder:
        model(TEXT)
    assert sorted(recorder.layers) == [0, 2]
    torch.testing.assert_close(recorder.calls(-1)[0], weights[2][:, [3, 1]][:, :, [2, 7]].detach())
    torch.testing.assert_close(recorder.mean(), (weights[0] + weights[2])[:, [3, 1]][:, :, [2, 7]].mean(1).detach() / 2)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_generation_gives_one_call_per_token_with_the_whole_cache(name: str) -> None:
    model = make_model(name)
    with AttentionRecorder(model) as recorder:
        tokens = model.generate(TEXT, attention_mask=MASK, max_new_tokens=4, do_sample=False, eos_token_id=None)
    read = tokens[:, :-1]  # the last token was never read
    mask = torch.cat([MASK, torch.ones(2, 3, dtype=torch.long)], 1)
    weights = eager_attentions(model, input_ids=read, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    calls = recorder.calls(1)
    assert [call.shape[-1] for call in calls] == [8, 9, 10, 11]
    for step, call in enumerate(calls):
        torch.testing.assert_close(call[:, :, 0], weights[1][:, :, 7 + step, : 8 + step], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["samples", "mask"])
def test_packed_samples_do_not_see_each_other(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.KERNELS, PACKED, lambda device: kernel)
    model = make_model()
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 0, 1]])
    boundaries = torch.tensor([0, 3, 8, 14, 16], dtype=torch.int32)
    with AttentionRecorder(model, rows=None) as recorder:
        model(TEXT, position_ids=positions, cu_seqlens=boundaries)
    for row, start, stop in [(0, 0, 3), (0, 3, 8), (1, 0, 6), (1, 6, 8)]:
        weights = eager_attentions(model, input_ids=TEXT[row : row + 1, start:stop])
        for layer in range(3):
            found = recorder.calls(layer)[0][row, :, start:stop]
            torch.testing.assert_close(found[..., start:stop], weights[layer][0], atol=1e-6, rtol=1e-5)
            assert torch.allclose(found.sum(-1), torch.ones(())) and not found[..., :start].any()


def test_masks_of_the_flash_kernels() -> None:
    """They get padding as (B, K), windows as a number, and the causal mask not at all."""
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    visible = _visible(torch.tensor([0, 2]), length=3, keys=5, mask=mask, window=3, packed=None)
    query, boundaries = torch.zeros(2, 1, 3, 8), torch.tensor([0, 1, 3, 6], dtype=torch.int32)
    packed = _packed(query, cu_seq_lens_q=boundaries, max_length_q=3)
    assert [len(set(row)) for row in packed.sample_of_token.tolist()] == [2, 1] and _packed(query) is None
    seen = _visible(torch.arange(3), length=3, keys=3, mask=None, window=None, packed=packed)
    assert seen.int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 1, 1]]], [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]
    assert visible.int().tolist() == [[[[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]]], [[[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]]]]


def test_recorders_leave_nothing_behind_even_when_they_overlap_or_fail() -> None:
    model, other = make_model(), make_model()
    before = ALL_ATTENTION_FUNCTIONS[PACKED]
    first, second, foreign = AttentionRecorder(model), AttentionRecorder(model), AttentionRecorder(other)
    first.__enter__(), second.__enter__(), foreign.__enter__()
    model(TEXT)
    first.__exit__(None, None, None)
    model(TEXT)
    second.__exit__(None, None, None), foreign.__exit__(None, None, None)
    assert len(first.calls(0)) == 1 and len(second.calls(0)) == 2
    with pytest.raises(LitEveError, match="nothing was recorded"):
        foreign.calls(0)
    with pytest.raises(ZeroDivisionError), AttentionRecorder(model):
        raise ZeroDivisionError
    assert ALL_ATTENTION_FUNCTIONS[PACKED] is before and not ALL_ATTENTION_FUNCTIONS._local_mapping


def test_what_cannot_be_recorded_is_refused() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, n_positions=16))
    with pytest.raises(LitEveError, match="GPT2Model: its attention cannot be recorded"):
        AttentionRecorder(gpt2)
    for arguments in ({"layers": [3]}, {"heads": [4]}):
        with pytest.raises(LitEveError, match=r"there is no (layer 3|head 4)"):
            AttentionRecorder(make_model(), **arguments)
    with pytest.raises(LitEveError, match="there is no row 8"), AttentionRecorder(make := make_model(), rows=8):
        make(TEXT)
    with pytest.raises(LitEveError, match="layer 1 is not recorded"):
        AttentionRecorder(make_model(), layers=[0]).calls(1)


def test_attention_sinks_are_refused() -> None:
    from transformers import GptOssForCausalLM

    config = GptOssConfig(**SIZE | {"num_hidden_layers": 1}, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
    model = GptOssForCausalLM._from_config(config, attn_implementation="eager")
    with pytest.raises(LitEveError, match="GptOssAttention has attention sinks"), AttentionRecorder(model):
        model(TEXT)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_that_looks_ahead_is_not_taken_for_causal(implementation: str) -> None:
    model = make_model()
    model.language_model.set_attn_implementation(implementation)
    attention = model.get_decoder().layers[1].self_attn
    attention.is_causal = False
    with torch.no_grad(), AttentionRecorder(model, rows=None) as recorder:
        model(TEXT, attention_mask=MASK)  # a mask of all pairs says what is seen
    assert not recorder.calls(1)[0][0, :, 3, 4:].any()
    if implementation == "sdpa":
        with pytest.raises(LitEveError, match="LlamaAttention of layer 1 .*: it looks ahead"), AttentionRecorder(model):
            model(TEXT)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("heads", [None, [2]])
def test_a_bias_in_the_mask_is_recorded(implementation: str, heads: list[int] | None) -> None:
    model = make_model()
    bias = torch.randn(2, 4, 8, 8).masked_fill(torch.ones(8, 8, dtype=torch.bool).triu(1), -torch.inf)
    expected = eager_attentions(model, input_ids=TEXT, attention_mask=bias)
    model.language_model.set_attn_implementation(implementation)
    with torch.no_grad(), AttentionRecorder(model, heads=heads, rows=None) as recorder:
        model.get_decoder()(TEXT, attention_mask=bias)
    for layer, weights in enumerate(expected):
        torch.testing.assert_close(recorder.calls(layer)[0], weights[:, heads or slice(None)], atol=1e-6, rtol=1e-5)


def test_a_bias_that_the_kernel_is_given_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS._global_mapping,
        "biased",
        lambda *args, position_bias=None, **kwargs: sdpa_attention_forward(*args, **kwargs),
    )
    model.language_model.set_attn_implementation("biased")
    with (
        pytest.raises(LitEveError, match="LlamaAttention adds a bias to its attention scores"),
        AttentionRecorder(model),
    ):
        model.get_decoder()(TEXT, position_bias=torch.zeros(1, 4, 8, 8))


def test_an_attention_of_ones_own_with_another_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_half(module, query, key, value, attention_mask, **kwargs):
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        mask[:, 4:] = False
        return sdpa_attention_forward(module, query, key, value, mask[None, None], **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "first_half", first_half)
    model = make_model()
    model.language_model.set_attn_implementation("first_half")
    with torch.no_grad():
        with AttentionRecorder(model, rows=[0, 3]):  # there it is the one that is known
            model(TEXT)
        with (
            pytest.raises(LitEveError, match="LlamaAttention of layer 0 does not compute the causal softmax attention"),
            AttentionRecorder(model, rows=-1),
        ):
            model(TEXT)
