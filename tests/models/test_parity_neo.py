"""lit_eve computes what the official NEO code computes, from its weights and the files of images on (float32, CPU)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from lit_eve.interpretation.recording.intercept import intercept_attention
from tests.models import reference_neo as reference

LOSS, LOGITS, GRADIENT = 1e-5, 1e-4, 1e-4
BATCHES = [*reference.IMAGES]
END = 498  # <|im_end|>


@pytest.fixture(scope="module")
def model():
    return reference.model()


@pytest.mark.parametrize("name", BATCHES)
def test_positions(model, name):
    batch, expected = reference.batch(name), reference.tensors(f"tiny/{name}")
    assert torch.equal(batch["image_grid_hw"], expected.get("image_grid_hw", torch.zeros(0, 2, dtype=torch.long)))
    found = model.position_tokens(batch["input_ids"], batch["image_grid_hw"], cu_seqlens=batch["cu_seqlens"])
    assert torch.equal(found[0, :, :3], expected["indexes_thw"])


@pytest.mark.parametrize("name", BATCHES)
def test_logits_losses_and_gradients(model, name):
    batch, expected = reference.batch(name), reference.tensors(f"tiny/{name}")
    model.zero_grad()
    output = model(**batch, logits_to_keep=0, output_hidden_states=True)
    facts = reference.results()["batches"][name]
    assert output.loss.item() == pytest.approx(facts["loss_by_reduction"]["token"], abs=LOSS)
    logits = output.logits[0]
    if "logits" in expected:
        assert_close(logits, expected["logits"], rtol=0, atol=LOGITS)
        for layer in (1, 4):
            assert_close(output.hidden_states[layer + 1][0], expected[f"hidden_{layer}"], rtol=0, atol=LOGITS)
        assert_close(output.hidden_states[-1][0], expected["hidden_final"], rtol=0, atol=LOGITS)
    else:
        assert_close(logits.logsumexp(-1), expected["logsumexp"], rtol=0, atol=LOGITS)
        assert_close(logits[expected["supervised_positions"]], expected["supervised_logits"], rtol=0, atol=LOGITS)
    if "inputs_embeds" in expected:
        embeds = model.embed_inputs(*(batch[key] for key in ("input_ids", "pixel_values", "image_grid_hw")))
        assert_close(embeds[0], expected["inputs_embeds"], rtol=0, atol=1e-5)
    loss = weighted(logits, batch, "square")
    assert loss.item() == pytest.approx(facts["loss"], abs=LOSS)
    assert weighted(logits, batch, "sample").item() == pytest.approx(facts["loss_by_reduction"]["sample"], abs=LOSS)
    loss.backward()
    check_gradients(model, facts["grad_norms"], expected)


def weighted(logits, batch, reduction):
    """Upstream's loss: tokens of a sample with n of them weigh 1 / sqrt(n) or 1 / n; ours weighs all of them alike."""
    power = {"square": 0.5, "sample": 1.0}[reduction]
    labels = batch["labels"][0]
    target = F.pad(labels[1:], (0, 1), value=-100)  # (T,)
    sample = torch.searchsorted(batch["cu_seqlens"].long(), torch.arange(len(labels)), right=True) - 1
    counts = torch.zeros(len(batch["cu_seqlens"]) - 1).index_add_(0, sample, (labels != -100).float())
    weight = torch.where(target == -100, 0.0, counts[sample.roll(-1)].clamp(min=1) ** -power)
    losses = F.cross_entropy(logits, target.clamp(min=0), reduction="none")
    return (weight * losses).sum() / weight.sum()


def check_gradients(model, norms, expected):
    found = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert {reference.our_name(key) for key in norms} == found.keys()
    for key, norm in norms.items():
        gradient = found[reference.our_name(key)]
        norm_found = 0.0 if gradient is None else gradient.norm().item()
        assert norm_found == pytest.approx(norm, rel=GRADIENT, abs=1e-6), key
    for key in (key for key in expected if key.startswith("grad.")):
        name = key.removeprefix("grad.")
        gradient, value = found[reference.our_name(name)], reference.our_value(name, expected[key])
        assert (gradient - value).norm() <= GRADIENT * value.norm(), key


@pytest.mark.parametrize("name", ["b_image", "b_two"])
def test_queries_and_keys_of_the_first_layer(model, name):
    """As they enter the attention, and what comes out of it."""
    expected, seen = reference.tensors(f"tiny/{name}"), {}

    def look(call):
        seen.update(query=call.query[0], key=call.key[0], out=call.run()[0][0].transpose(0, 1), scale=call.settings["scaling"])
        return call.run()

    with torch.no_grad(), intercept_attention(model, look, [0]):
        model(**reference.batch(name))
    assert seen["scale"] == reference.results()["batches"][name]["attention_scale"]
    for ours, theirs in (("query", "query"), ("key", "key"), ("out", "attn_out")):
        assert_close(seen[ours], expected[f"layer0.{theirs}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["one", "two", "text"])
@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static"}, {"use_cache": False}], ids=["cache", "static", "none"]
)
def test_greedy_answers(model, name, options):
    given = {
        key.removeprefix(f"{name}."): x for key, x in reference.tensors("tiny/generate").items() if key.startswith(f"{name}.")
    }
    images = reference.images([reference.results()["generate"][name]["images"]])
    assert torch.equal(images["image_grid_hw"], given["grid_hw"])
    inputs = {"input_ids": given["input_ids"], **images}
    places = model.position_tokens(given["input_ids"], images["image_grid_hw"])[0]
    assert torch.equal(places[:, :3], given["prompt_thw"])
    assert places[-1, 3] == reference.results()["generate"][name]["next_t_after_prompt"]
    asked = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "suppress_tokens": [END], "pad_token_id": 0}
    found = model.eval().generate(**inputs, **asked, **options, output_logits=True, return_dict_in_generate=True)
    assert found.sequences[0, -12:].tolist() == given["tokens"].tolist()
    assert_close(torch.cat(found.logits), given["step_logits_cached"], rtol=0, atol=LOGITS)
