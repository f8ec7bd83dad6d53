"""NEO's native positions: families, beginnings, and all that must hold for any way in which a batch or an answer is computed.

The official numbers are in ``tests/models/test_parity_neo.py``.
"""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, DynamicCache

import lit_eve
from lit_eve.errors import ConfigError, LitEveError
from lit_eve.interpretation import AttentionRecorder
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.attention import PACKED, kernels
from lit_eve.models.decoders import blocks_of
from lit_eve.models.positions.native_attention import NEW
from lit_eve.models.positions.neo import FAMILIES, quarters
from lit_eve.training.blueprint import Blueprint
from tests.models import reference_neo, tiny
from tests.models.attention.images import both_ways, numbers, sample, samples, without_labels
from tests.models.decoders.decoder_families import tiny_model
from tests.training import world as micro

NEO = {"positions": {"name": "neo"}}
BOTH = {**NEO, "image_attention": {"name": "bidirectional"}}
PARTS = {"geometry": tiny.GEOMETRY, "patch_embedding": {"name": "linear", "width": 16}}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
OPTIONS = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def around(known, **parts):
    """A fresh model around a language model of transformers."""
    model = EveForConditionalGeneration(EveConfig(text_config=copy.deepcopy(known.config), **PARTS, **parts)).eval()
    language_model = model.language_model
    missing = language_model.load_state_dict(known.state_dict(), strict=False)
    assert {name.split(".")[-2] for name in missing.missing_keys} <= {*NEW} and not missing.unexpected_keys
    with torch.no_grad():
        for name, value in known.state_dict().items():
            for new, begun in model.positions.begins(language_model, name, value):
                language_model.get_parameter(new).copy_(begun)
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_new_channels_it_is_the_familys_own_attention(family):
    """Gains of zero, at the start: logits are the language model's, with windows, biases and norms of the family."""
    known = tiny_model(family)
    model = around(known, **NEO)
    ids = torch.arange(3, 20)[None]
    for name in ("packed", "sdpa", "eager"):
        known.set_attn_implementation("sdpa" if name == "packed" else name)
        model.language_model.set_attn_implementation(name)
        with torch.no_grad():
            expected = known(input_ids=ids).logits
            assert_close(model(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
            assert_close(model.language_model(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)
            cache = DynamicCache(config=model.config.text_config)
            places = model.position_tokens(ids, None)
            steps = [
                model(input_ids=ids[:, i : i + 1], past_key_values=cache, token_positions=places[:, i : i + 1]).logits
                for i in range(ids.shape[1])
            ]
            assert_close(torch.cat(steps, 1), expected, **CLOSE)


@pytest.mark.parametrize("family", ["gemma", "qwen3_moe", "gpt_neox", "olmo2", "gpt2"])
def test_other_families_are_refused(family):
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match=f"'neo' is not for decoders of the family '{family}'"),
    ):
        EveForConditionalGeneration(EveConfig(text_config=tiny_model(family).config, **PARTS, **NEO))


# ---- the beginning


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """The folder of the reference's tiny Qwen3, with a tokenizer."""
    folder = tmp_path_factory.mktemp("qwen3")
    micro.make_decoder(folder)
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((reference_neo.ROOT / "init/qwen3" / name).read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen3"}))
    return folder


@pytest.mark.parametrize("layers", [0, 1])
def test_the_official_beginning(qwen3, layers):
    """Weights that follow from the language model's, to the bit; logits on text; gradients a thousand times too large."""
    kind = {"name": "pre_buffer", "layers": layers} if layers else None
    blueprint = Blueprint(decoder=str(qwen3), decoder_kind=kind, positions={"name": "neo", "zero": "keys"}, **PARTS)
    blueprint.check()
    model = blueprint.build()
    weights, theirs = model.state_dict(), reference_neo.tensors("init/neo_extra1_new_keys")
    for key, value in theirs.items():
        _, _, layer, rest = key.split(".", 3)
        if int(layer) >= 1:  # layer 0 is drawn
            assert torch.equal(weights[f"language_model.model.layers.{int(layer) - 1 + layers}.{rest}"], value), key
    given = reference_neo.tensors("init/logits")
    if layers:
        weights |= {f"language_model.{key}": value for key, value in theirs.items()}
        model.load_state_dict(weights)
    ids = given["input_ids"]
    output = model(input_ids=ids, labels=ids, logits_to_keep=0)
    assert_close(output.logits[0], given[f"neo_extra{layers}_logits"], rtol=0, atol=1e-4)
    facts = json.loads((reference_neo.ROOT / "init/init.json").read_text())
    assert output.loss.item() == pytest.approx(facts[f"loss_extra{layers}"], abs=1e-5)
    output.loss.backward()
    for key, norm in facts[f"grad_norms_extra{layers}"].items():
        gradient = model.get_parameter(f"language_model.{key}").grad
        assert (0.0 if gradient is None else gradient.norm().item()) == pytest.approx(norm, rel=1e-4, abs=1e-6), key


def test_our_beginning_is_the_language_model_and_its_gradients_are_ordinary(qwen3):
    model = Blueprint(decoder=str(qwen3), positions={"name": "neo"}, **PARTS).build()
    known = AutoModelForCausalLM.from_pretrained(qwen3)
    ids = reference_neo.tensors("init/logits")["input_ids"]
    known.set_attn_implementation("eager")
    model.language_model.set_attn_implementation("eager")
    output = model(input_ids=ids, labels=ids, logits_to_keep=0)
    assert torch.equal(output.logits, known(input_ids=ids).logits), "to the bit"
    output.loss.backward()
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    new = {name: norm for name, norm in norms.items() if name.split(".")[-2] in NEW}
    own = max(norm for name, norm in norms.items() if name not in new and "self_attn" in name)
    gains = [norm for name, norm in new.items() if "k_norm" in name]
    assert max(new.values()) < own, "clipping leaves the others as they are"
    assert len(gains) == 4 and min(gains) > 1e-3, "and they do learn"
    layers = blocks_of(model.get_decoder())
    attention = layers[0].self_attn
    assert torch.equal(attention.k_proj_hw.weight, quarters(attention.k_proj.weight, attention.head_dim))
    assert not attention.k_norm_h.weight.any() and (attention.q_norm_w.weight == 1).all()


def test_without_a_checkpoint_it_begins_in_the_same_way():
    torch.manual_seed(0)
    model = EveForConditionalGeneration(tiny.config("qwen3", **NEO))
    for layer in blocks_of(model.get_decoder()):
        attention = layer.self_attn
        assert torch.equal(attention.q_proj_hw.weight, quarters(attention.q_proj.weight, 16))
        assert not attention.k_norm_h.weight.any() and (attention.q_norm_h.weight == 1).all()


def test_counted_positions_become_neos_and_stay_neos(qwen3, tmp_path):
    counted = Blueprint(decoder=str(qwen3), **PARTS)
    counted.build().save_pretrained(tmp_path / "counted")
    counted.processor.save_pretrained(tmp_path / "counted")
    blueprint = Blueprint(init_from=str(tmp_path / "counted"), positions={"name": "neo"})
    blueprint.check()
    model = blueprint.build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path / "neo")
    blueprint.processor.save_pretrained(tmp_path / "neo")
    for again in (Blueprint(init_from=str(tmp_path / "neo")).build(), lit_eve.load(tmp_path / "neo")[0]):
        assert again.config.positions == {"name": "neo"}
        assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match=r"has weights for positions 'neo', and there is no place for them with 'thw'"):
        Blueprint(init_from=str(tmp_path / "neo"), positions={"name": "thw"}).check()


# ---- whatever way


@pytest.mark.parametrize(
    ("decoder", "implementation", "checkpointing", "parts"),
    [
        ("qwen3", "packed", True, BOTH),
        ("llama_gqa", "packed", False, NEO),
        ("qwen3", "mask", False, BOTH),
        ("qwen2_tied", "sdpa", False, BOTH),
        ("qwen3", "eager", False, NEO | {"decoder_kind": {"name": "pre_buffer", "layers": 1}}),
        ("qwen3", "packed", True, BOTH | {"decoder_kind": {"name": "experts", "parts": ["norms", "mlp"]}}),
    ],
)
def test_packed_rows_give_the_losses_and_gradients_of_their_samples_alone(
    decoder, implementation, checkpointing, parts, monkeypatch
):
    if implementation == "mask":
        monkeypatch.setattr("lit_eve.models.attention.packed.sdpa_kernel", lambda device: "mask")
        implementation = PACKED
    model = tiny.model(decoder, with_teacher=True, **parts)
    tiny.assert_packed_like_alone(model, samples(model), implementation, checkpointing)


def test_kernels_of_one_width_get_values_of_that_width(monkeypatch):
    """The two kernels for rows of varying length run on GPUs: one that computes the same stands for them."""
    model = tiny.model("qwen3", **NEO).eval()
    batch = without_labels(tiny.packed([samples(model)[:3]]))
    widths = set()

    def kernel(name, query, key, value, cu_query, cu_key, *_, scale, **__):
        widths.add((query.shape[-1], key.shape[-1], value.shape[-1]))
        out = torch.empty_like(query)
        for start, stop in zip(cu_query[:-1].tolist(), cu_query[1:].tolist(), strict=True):
            q, k, v = (x[start:stop].transpose(0, 1)[None] for x in (query, key, value))
            one = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
            out[start:stop] = one[0].transpose(0, 1)
        return out

    with torch.no_grad():
        expected = model(**batch).logits
        monkeypatch.setitem(kernels.KERNELS, PACKED, lambda device: "varlen")
        monkeypatch.setattr(kernels, "obstacle_of", lambda *_: None)
        monkeypatch.setattr(kernels, "varlen", kernel)
        assert_close(model(**batch).logits, expected, **CLOSE)
    assert widths == {(32, 32, 32)}


def greedy(model, row, steps=4):
    inputs = without_labels(tiny.padded([row]))
    for _ in range(steps):
        with torch.no_grad():
            new = model(**inputs).logits[:, -1].argmax(-1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], new[:, None]], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return inputs["input_ids"][0, -steps:].tolist()


def test_answers_by_every_way():
    model = tiny.model("qwen3", **BOTH).eval()
    rows = samples(model)[:3]
    expected = [greedy(model, row) for row in rows]
    batch = without_labels(tiny.padded(rows, "left"))
    length = batch["input_ids"].shape[1]
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        assert model.generate(**batch, **OPTIONS, **options)[:, length:].tolist() == expected, options
    images = [batch[key] for key in ("input_ids", "pixel_values", "image_grid_hw")]
    embeds = {
        "inputs_embeds": model.embed_inputs(*images),
        "attention_mask": batch["attention_mask"],
        "image_numbers": model.number_images(images[0], images[2]),
        "token_positions": model.position_tokens(images[0], images[2], batch["attention_mask"]),
    }
    assert model.generate(**embeds, **OPTIONS).tolist() == expected
    beams = model.generate(**batch, **OPTIONS, num_beams=3)
    assert torch.equal(model.generate(**embeds, **OPTIONS, num_beams=3), beams[:, length:])


def test_the_recorder_sees_the_new_channels():
    """Rows add up to 1, respect the mask, and are those of eager attention."""
    model = tiny.model("qwen3", **BOTH).eval()
    row = sample(model, [5, (2, 2), (1, 3), 2])
    batch = without_labels(tiny.packed([[row]]))
    with torch.no_grad():
        with AttentionRecorder(model, rows=None) as attention:
            model(**batch)
        model.language_model.set_attn_implementation("eager")
        expected = model(**without_labels(tiny.padded([row])), output_attentions=True).attentions
    seen = both_ways(numbers(model, row))
    for layer in range(4):
        weights = attention.calls(layer)[0]
        assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
        assert not weights[0][:, ~seen].any()
        assert_close(weights, expected[layer], **CLOSE)


def test_rows_and_columns_are_told_apart():
    """With gains that are not zero, an image whose tokens trade places is another one."""
    model = tiny.model("qwen3", **BOTH).eval()
    row = sample(model, [1, (2, 2), 1])
    batch = without_labels(tiny.padded([row]))
    places = model.position_tokens(batch["input_ids"], batch["image_grid_hw"])
    turned = places[..., [0, 2, 1, 3]]
    with torch.no_grad():
        assert (model(**batch).logits - model(**batch, token_positions=turned).logits).abs().max() > 1e-4


def test_class_and_split_tokens():
    model = tiny.model("qwen3", **NEO)
    row = sample(model, [1, (1, 2), 1])
    found = model.position_tokens(row["input_ids"][None], row["image_grid_hw"])[0]
    assert found.tolist() == [[0, 0, 0, 1], [1, 0, 0, 2], [2, 0, 0, 3], [2, 0, 1, 3], [2, 0, 2, 3], [3, 0, 0, 4]]


def test_copies_pickles_and_compiled_blocks():
    model = tiny.model("qwen3", **BOTH).eval()
    batch = without_labels(tiny.padded(samples(model)[:1]))
    with torch.no_grad():
        expected = model(**batch).logits
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(**batch).logits, expected)
        try:
            model.get_decoder().layers[0].compile(backend="eager", fullgraph=True)
            assert_close(model(**batch).logits, expected, **CLOSE)
        finally:
            torch.compiler.reset()


# ---- refused


@pytest.mark.parametrize(
    "kind", [{"name": "experts"}, {"name": "experts", "parts": ["attention"]}, {"name": "image_adapter", "rank": 2}]
)
def test_kinds_that_change_the_attention_are_refused(kind):
    with pytest.raises(ConfigError, match="positions 'neo' is not for a decoder_kind that changes the attention"):
        tiny.model("qwen3", decoder_kind=kind, **NEO)


def test_attentions_that_were_not_tried_are_refused(qwen3):
    model = tiny.model("qwen3", **NEO)
    model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(LitEveError, match="'flash_attention_2' was not tried with values narrower than queries"):
        model(**tiny.packed([samples(model)[:1]]))
    with pytest.raises(ConfigError, match="model.attn_implementation 'flash_attention_2' was not tried"):
        Blueprint(decoder=str(qwen3), attn_implementation="flash_attention_2", **PARTS, **NEO).check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"theta_hw": 0}, "theta_hw must be a positive number, got 0"),
        ({"zero": "norms"}, "zero must be one of gains, keys, got 'norms'"),
        ({"theta": 1e4}, "'neo' has no argument 'theta'"),
    ],
)
def test_arguments_that_cannot_be(arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny.model("qwen3", positions={"name": "neo", **arguments})


def test_heads_that_cannot_be_quartered_are_refused(monkeypatch):
    monkeypatch.setitem(tiny.DECODERS, "odd", tiny.DECODERS["qwen3"] | {"head_dim": 6})
    with pytest.raises(ConfigError, match="needs heads whose width is a multiple of 4, not 6"):
        tiny.model("odd", **NEO)
