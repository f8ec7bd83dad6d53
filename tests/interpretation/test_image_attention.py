"""What is recorded where images see both ways: rows of the mask, packed, padded and in generation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from lit_eve.errors import LitEveError
from lit_eve.interpretation import AttentionRecorder, ablate_heads, attend, rollout
from lit_eve.models import EveForConditionalGeneration
from tests.interpretation.reference import on_images, read_again
from tests.models import tiny
from tests.models.attention.images import BIDIRECTIONAL, both_ways, numbers, samples, without_labels
from tests.tiny_model import make_tiny, scene_image

THW, NEO = ({"positions": {"name": name}} for name in ("thw", "neo"))


@pytest.mark.parametrize("name", ["packed", "packed_sdpa", "sdpa", "eager"])
def test_recorded_rows_are_those_of_the_mask(name):
    model = tiny.model("llama_gqa", **BIDIRECTIONAL).eval()
    model.language_model.set_attn_implementation(name)
    rows = samples(model)
    alone = []
    for row in rows:
        with torch.no_grad(), AttentionRecorder(model, rows=None) as recorder:
            model(**without_labels(tiny.padded([row])))
        (found,) = recorder.calls(1)
        mask = both_ways(numbers(model, row))
        assert_close(found.sum(-1), torch.ones(found.shape[:3]))
        assert (found[0].gt(0) == mask).all()
        alone.append(found[0])
    packed = without_labels(tiny.packed([rows[:2], rows[2:]]))
    padded = without_labels(tiny.padded(rows, "left"))
    padded["position_ids"] = (padded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), AttentionRecorder(model, rows=None) as recorder:
        model(**packed)
        model(**padded)
    together, beside = recorder.calls(1)
    for row, start, one in [(0, 0, 0), (0, len(rows[0]["input_ids"]), 1), (1, 0, 2)]:
        stop = start + alone[one].shape[-1]
        assert_close(together[row, :, start:stop, start:stop], alone[one], rtol=1e-4, atol=1e-6)
        assert_close(together[row, :, start:stop].sum(-1), torch.ones(alone[one].shape[:2]))
    for row, one in enumerate(alone):
        assert_close(beside[row, :, -one.shape[-1] :, -one.shape[-1] :], one, rtol=1e-4, atol=1e-6)


def test_chosen_rows_and_the_steps_of_a_generation():
    model = tiny.model("llama_gqa", **BIDIRECTIONAL).eval()
    row = samples(model)[1]
    inputs, first = without_labels(tiny.padded([row])), 5  # the first token of an image
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with AttentionRecorder(model, rows=None) as whole:
        model.generate(**inputs, **options)
    with torch.no_grad(), AttentionRecorder(model, rows=[first, -1]) as chosen:
        model(**inputs)
    prompt, *steps = whole.calls(0)
    assert_close(chosen.calls(0)[0], prompt[:, :, [first, -1]])
    assert (prompt[0, :, first] > 0).sum(-1).tolist() == [int(both_ways(numbers(model, row))[first].sum())] * 4
    assert all(bool((step > 0).all()) and step.shape[2] == 1 for step in steps)


@pytest.mark.parametrize(
    "parts", [BIDIRECTIONAL, {"positions": {"name": "thw"}}, BIDIRECTIONAL | {"positions": {"name": "neo"}}]
)
def test_rollout_and_ablation_see_the_same_model(parts):
    """They give embeddings to the model, which must be told of the images and of positions beside."""
    stock, processor = make_tiny()
    config = copy.deepcopy(stock.config)
    for key, spec in parts.items():
        setattr(config, key, spec)
    model = EveForConditionalGeneration(config).eval()
    model.load_state_dict(stock.state_dict(), strict=False)
    for name, parameter in model.named_parameters():
        if "k_norm_" in name:  # neo's begin at 0
            torch.nn.init.ones_(parameter)
    seen = attend(model, processor, [scene_image(0), scene_image(1)], "where is the red circle?", max_new_tokens=3)
    found, ablated = rollout(model, seen), ablate_heads(model, seen, layers=[0])
    model.language_model.set_attn_implementation("eager")
    with torch.no_grad():
        output, scores = read_again(model, seen, output_attentions=True)
    assert output.attentions[0][0].triu(1).any() == ("image_attention" in parts)
    assert_close(ablated.intact, scores, rtol=1e-4, atol=1e-5)
    product = torch.eye(output.logits.shape[1])
    for weights in output.attentions:
        product = (0.5 * weights[0].mean(0) + 0.5 * torch.eye(len(product))) @ product
    for index, step in enumerate(seen.steps):
        row = product[seen.inputs["input_ids"].shape[1] + step - 1]
        for image, expected in enumerate(on_images(row, seen, model.config.image_token_id)):
            assert_close(found[image][index], expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(LitEveError, match="give (image_numbers|token_positions)"):
        model(inputs_embeds=torch.zeros(1, 3, 32))
