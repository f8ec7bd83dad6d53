"""Image adapters: the language model at the start, one update for all tokens, and a dense model once they are merged."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from lit_eve.errors import ConfigError
from lit_eve.interpretation import AttentionRecorder
from lit_eve.models import EveForConditionalGeneration
from tests.models import tiny

KIND = {"name": "image_adapter", "rank": 4, "layers": 3}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def without_labels(batch):
    return {key: value for key, value in batch.items() if key not in ("labels", "teacher_pixel_values", "target_positions")}


@pytest.fixture
def model():
    return tiny.model("qwen2_tied", decoder_kind=KIND).eval()


def test_names_of_the_decoders_own_weights_stay(model):
    names, own = model.state_dict().keys(), tiny.model("qwen2_tied").state_dict().keys()
    assert {name for name in names if ".lora_" not in name} == own
    assert len(names) - len(own) == 3 * 7 * 2
    assert "language_model.model.layers.2.mlp.down_proj.lora_A.weight" in names


@pytest.mark.parametrize("bias", [False, True])
def test_a_new_model_is_its_language_model(bias):
    """To the bit; with new biases, as the official code has them, it is not."""
    torch.manual_seed(0)
    model = EveForConditionalGeneration(tiny.config(decoder_kind=KIND | {"bias": bias})).eval()
    plain = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    weights = model.language_model.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    ids = torch.randint(3, tiny.VOCAB, (2, 9))
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits) is not bias
    layer = model.get_decoder().layers[0].mlp.down_proj
    bound = (6 / ((1 + 5) * layer.in_features)) ** 0.5
    assert 0.8 * bound < layer.lora_A.weight.abs().max() <= bound and not layer.lora_B.weight.any()
    assert (layer.bias is not None) is bias
    assert model.get_decoder().layers[3].mlp.down_proj.bias is None


def test_packed_samples_are_alone(model):
    rows = tiny.samples(model, [1, 2, 0])
    batch = tiny.packed([rows[:2], rows[2:]])
    outputs, expected = tiny.gradients(model, *(tiny.padded([row]) for row in rows), num_targets=1)
    (found,), gradients = tiny.gradients(model, batch, num_targets=1)
    assert_close(found.loss, sum(output.loss for output in outputs), **CLOSE)
    assert gradients.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, value in expected.items():
        assert_close(gradients[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    model.train().recompute_blocks()
    _, again = tiny.gradients(model, batch, num_targets=1)
    for name, value in gradients.items():
        assert_close(again[name], value, **CLOSE)


def test_answers_are_the_same_by_every_way(model):
    """KV cache or none, left-padded batches, alone."""
    rows = tiny.samples(model, [1, 0, 2])
    batch = without_labels(tiny.padded(rows, "left"))
    length = batch["input_ids"].shape[1]
    together = model.generate(**batch, **OPTIONS)[:, length:]
    assert torch.equal(together, model.generate(**batch, **OPTIONS, use_cache=False)[:, length:])
    for row, sample in enumerate(rows):
        assert torch.equal(model.generate(**without_labels(tiny.padded([sample])), **OPTIONS)[0, -6:], together[row])


def test_recorders_see_what_is_computed(model):
    batch = without_labels(tiny.packed([tiny.samples(model, [1, 2])]))
    with torch.no_grad(), AttentionRecorder(model, rows=None) as attention:
        model(**batch)
    for layer in range(4):
        weights = attention.calls(layer)[0]
        assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_copies_and_pickles_are_the_same(model):
    batch = without_labels(tiny.padded(tiny.samples(model, [1])))
    expected = model(**batch).logits
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(**batch).logits, expected)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 4, "layers": 0}, "layers must be a whole number of at least 1, got 0"),
        ({"rank": 4, "layers": 5}, "layers = 5, but the decoder has 4 layers"),
        ({"rank": 4, "modules": ["q_proj", "fc1"]}, "'fc1' names no linear layer of .*'llama'; there are q_proj, k_proj"),
        ({"rank": 4, "modules": ["proj"]}, "'proj' names no linear layer"),
    ],
)
def test_what_cannot_be_adapted_is_told(arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny.model(decoder_kind={"name": "image_adapter", **arguments})


def test_some_layers_alone():
    model = tiny.model(decoder_kind={"name": "image_adapter", "rank": 2, "layers": 1, "modules": ["v_proj", "mlp.up_proj"]})
    assert {name.rpartition(".lora_")[0] for name in model.state_dict() if ".lora_" in name} == {
        "language_model.model.layers.0.self_attn.v_proj",
        "language_model.model.layers.0.mlp.up_proj",
    }
