"""Adapters of peft: the language model at the start, one update for all tokens, peft's own numbers when merged."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch.testing import assert_close

from lit_eve.errors import ConfigError, LitEveError
from lit_eve.interpretation import AttentionRecorder
from lit_eve.interpretation.transformer_lens import transformer_lens_bridge
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.checkpoints.merging import merged, merges_of
from lit_eve.training.stages import Lora
from tests.models import tiny

peft = pytest.importorskip("peft")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
KINDS = {"lora": Lora(rank=4, alpha=12), "dora": Lora(rank=4, target_modules=["q_proj", "mlp.up_proj"], use_dora=True)}


def without_labels(batch):
    return {key: value for key, value in batch.items() if key not in ("labels", "teacher_pixel_values", "target_positions")}


@pytest.fixture(params=KINDS)
def model(request):
    return tiny.model("qwen2_tied", lora=KINDS[request.param].architecture).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_is_its_language_model(kind):
    torch.manual_seed(0)
    model = EveForConditionalGeneration(tiny.config(lora=KINDS[kind].architecture)).eval()
    plain = EveForConditionalGeneration(EveConfig.from_dict(model.config.to_dict() | {"lora": None})).eval()
    weights = {name.replace(".base_layer", ""): value for name, value in model.state_dict().items() if ".lora_" not in name}
    plain.load_state_dict(weights)
    batch = without_labels(tiny.padded(tiny.samples(model, [1, 0])))
    assert_close(model(**batch).logits, plain(**batch).logits, rtol=0, atol=1e-5 * (kind == "dora"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sum(".lora_" in name for name in model.state_dict()) == (4 * 7 * 2 if kind == "lora" else 4 * 2 * 3)


def test_packed_samples_are_alone(model):
    rows = tiny.samples(model, [1, 2, 0])
    batch = tiny.packed([rows[:2], rows[2:]])
    outputs, expected = tiny.gradients(model, *(tiny.padded([row]) for row in rows), num_targets=1)
    (found,), gradients = tiny.gradients(model, batch, num_targets=1)
    assert_close(found.loss, sum(output.loss for output in outputs), **CLOSE)
    assert gradients.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, value in expected.items():
        assert_close(gradients[name], value, rtol=1e-3, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}")
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


def test_merged_weights_are_those_of_peft(model):
    weights, prefix = model.state_dict(), "language_model."
    merges = merges_of(model.config, [name.removeprefix(prefix) for name in weights])
    named = {
        prefix + name: one._replace(sources=tuple(prefix + source for source in one.sources)) for name, one in merges.items()
    }
    found = dict(merged(weights.items(), named))
    plain = EveForConditionalGeneration(EveConfig.from_dict(model.config.to_dict() | {"lora": None})).eval()
    plain.load_state_dict(found)
    batch = without_labels(tiny.padded(tiny.samples(model, [1, 2])))
    assert_close(plain(**batch).logits, model(**batch).logits, rtol=1e-5, atol=1e-5)
    theirs = copy.deepcopy(model.language_model)
    for module in theirs.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.merge()
    for name, value in theirs.state_dict().items():
        if ".lora_" not in name:
            assert_close(found[prefix + name.replace(".base_layer", "")], value, rtol=0, atol=1e-6)


def test_a_saved_model_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = EveForConditionalGeneration.from_pretrained(tmp_path).eval()
    batch = without_labels(tiny.padded(tiny.samples(model, [1])))
    assert_close(again(**batch).logits, model(**batch).logits, **CLOSE)
    assert again.config.lora == model.config.lora


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "lora.rank must be a whole number of at least 1, got 0"),
        ({"alpha": 0}, "lora.alpha must be positive"),
        ({"dropout": 1}, "lora.dropout must be at least 0 and below 1"),
        ({"quantization": "int8"}, "lora.quantization must be nf4 or null"),
        ({"quantization": "nf4", "use_dora": True}, "choose one of them"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Lora(**settings)


def test_layers_that_there_are_not():
    with pytest.raises(
        ConfigError, match="lora: 'fc1' names no linear layer of a decoder of the family 'llama'; there are q_proj"
    ):
        tiny.model(lora=Lora(target_modules=["fc1"]).architecture)


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("decoder_kind", {"name": "experts"}),
        ("decoder_kind", {"name": "image_adapter", "rank": 2}),
        ("decoder_kind", {"name": "pre_buffer", "layers": 1}),
        ("positions", {"name": "neo"}),
    ],
)
def test_combinations_that_are_not_proven_are_refused(key, part):
    with pytest.raises(ConfigError, match=f"lora beside {key} '{part['name']}' is not proven to be right"):
        tiny.model(**{key: part}, lora=Lora().architecture)


def test_what_would_pass_over_adapters_is_refused(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="use_kernels: kernels would pass over adapters"):
        EveForConditionalGeneration.from_pretrained(tmp_path, use_kernels=True)
    with pytest.raises(LitEveError, match="TransformerLens does not know adapters"):
        transformer_lens_bridge(model, None)


def test_without_peft_it_is_said_what_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"LoRA adapters need the package peft: pip install 'lit-eve\[peft\]'"):
        tiny.model(lora=Lora().architecture)
