"""Rollouts compared with a few lines over transformers' own eager attention."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_eve.errors import LitEveError
from lit_eve.interpretation import attend, gradient_rollout, rollout
from tests.interpretation.reference import on_images, read_again
from tests.tiny_model import make_tiny, scene_image

module = import_module("lit_eve.interpretation.rollout")  # its name is that of a function
QUESTION = "where is the red circle?"
# Each with two query heads per key.
CASES = [("llama", "packed"), ("qwen2", "sdpa"), ("qwen3", "packed"), ("qwen3", "eager"), ("qwen3 experts", "packed")]
WAYS = [rollout, gradient_rollout]


def make(decoder: str = "llama", images: int = 2):
    decoder, _, kind = decoder.partition(" ")
    model, processor = make_tiny(decoder, kind=kind or "dense")
    seen = attend(model, processor, [scene_image(index) for index in range(images)], QUESTION, max_new_tokens=3)
    return model, seen


@pytest.mark.parametrize(("decoder", "implementation"), CASES)
def test_rollout_is_the_product_of_eager_attentions(decoder: str, implementation: str) -> None:
    model, seen = make(decoder)
    model.language_model.set_attn_implementation("eager")
    with torch.no_grad():
        output, _ = read_again(model, seen, output_attentions=True)
    product = np.eye(output.logits.shape[1])
    for weights in output.attentions:
        product = (0.5 * weights[0].mean(0).double().numpy() + 0.5 * np.eye(len(product))) @ product
    assert np.allclose(product.sum(1), 1)
    model.language_model.set_attn_implementation(implementation)
    found = rollout(model, seen)
    for index, step in enumerate(seen.steps):
        row = torch.from_numpy(product[seen.inputs["input_ids"].shape[1] + step - 1]).float()
        for image, expected in enumerate(on_images(row, seen, model.config.image_token_id)):
            torch.testing.assert_close(found[image][index], expected, atol=1e-6, rtol=1e-4)
    assert [maps.shape[1:] for maps in found] == [maps.shape[1:] for maps in seen.maps]


@pytest.mark.parametrize(("decoder", "implementation"), CASES)
def test_gradient_rollout_is_that_of_eager_attention_and_autograd(decoder: str, implementation: str) -> None:
    model, seen = make(decoder)
    model.language_model.set_attn_implementation("eager")
    output, scores = read_again(model, seen, output_attentions=True)
    model.language_model.set_attn_implementation(implementation)
    found = gradient_rollout(model, seen)
    for index, step in enumerate(seen.steps):
        relevance = torch.eye(output.logits.shape[1])
        for weights, gradient in zip(
            output.attentions, torch.autograd.grad(scores[index], output.attentions, retain_graph=True), strict=True
        ):
            relevance = relevance + (gradient * weights).clamp(min=0).mean((0, 1)) @ relevance
        row = relevance[seen.inputs["input_ids"].shape[1] + step - 1].detach()
        for image, expected in enumerate(on_images(row, seen, model.config.image_token_id)):
            assert expected.max() > 1e-4  # not a comparison of zeros
            torch.testing.assert_close(found[image][index], expected, atol=1e-5, rtol=1e-3)
    assert not any(maps.requires_grad for maps in found)


@pytest.mark.parametrize("way", WAYS)
def test_the_answer_is_read_as_the_kernel_reads_it(way, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make("qwen3")
    logits = []
    run = module._run
    monkeypatch.setattr(module, "_run", lambda *args: (logits.append(run(*args)), logits[0])[1])
    way(model, seen)
    with torch.no_grad():
        output, _ = read_again(model, seen)
    positions = torch.tensor(seen.steps) + seen.inputs["input_ids"].shape[1] - 1
    torch.testing.assert_close(logits[0][0].detach(), output.logits[:, positions], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_nothing_of_the_model_is_changed(way, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make()
    for parameter in list(model.parameters())[::2]:
        parameter.requires_grad_(False)
    first = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    first.grad = torch.full_like(first, 7.0)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    with torch.no_grad():
        if fails:
            seeing = module.probabilities
            monkeypatch.setattr(module, "probabilities", lambda call: seeing(call) if call.layer < 2 else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                way(model, seen)
        else:
            way(model, seen)
        assert not torch.is_grad_enabled()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]) and parameter.requires_grad == before[name][1]
        assert parameter.grad is None or (parameter is first and (parameter.grad == 7).all())
    assert not ALL_ATTENTION_FUNCTIONS._local_mapping
    assert not any(block._forward_hooks for block in model.modules())


def test_frozen_parameters_have_the_same_gradient_rollout() -> None:
    model, seen = make()
    expected = gradient_rollout(model, seen)
    model.requires_grad_(False)
    for found, maps in zip(gradient_rollout(model, seen), expected, strict=True):
        assert torch.equal(found, maps)


@pytest.mark.parametrize("way", WAYS)
def test_half_precision(way) -> None:
    model, seen = make()
    expected = way(model, seen)
    model.to(torch.bfloat16)
    for found, maps in zip(way(model, seen), expected, strict=True):
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert torch.corrcoef(torch.stack([found.flatten(), maps.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("way", WAYS)
def test_what_has_no_rollout_is_refused(way, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = make()
    with pytest.raises(LitEveError, match="the model is in training mode"):
        way(model.train(), seen)
    model.eval()
    if way is gradient_rollout:
        with torch.inference_mode(), pytest.raises(LitEveError, match="which torch.inference_mode rules out"):
            way(model, seen)
    blocks = model.get_decoder().layers
    with monkeypatch.context() as patch:
        patch.setattr(blocks[1].self_attn, "forward", lambda hidden_states, **_: (hidden_states, None))
        with pytest.raises(LitEveError, match="the attention of some layers was not seen"):
            way(model, seen)
    model.language_model.set_attn_implementation("sdpa")
    blocks[1].self_attn.is_causal = False  # the kernel looks ahead
    with pytest.raises(LitEveError, match="LlamaAttention of layer 1 does not compute the causal softmax attention"):
        way(model, seen)
    del blocks[1].self_attn
    with pytest.raises(LitEveError, match="LlamaModel: its attention cannot be recorded, as its layers have no self_attn"):
        way(model, seen)
