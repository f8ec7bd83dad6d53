"""New layers in front of the language model's: where its weights go, what the new ones begin with, and who counts them."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, DynamicCache

import lit_eve
from lit_eve.errors import ConfigError
from lit_eve.interpretation import AttentionRecorder
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.models.decoders import PreBuffer, blocks_of
from lit_eve.models.decoders.pre_buffer import EQUAL_LAYERS
from lit_eve.training.blueprint import Blueprint
from tests.models import tiny
from tests.models.decoders.decoder_families import tiny_config, tiny_model
from tests.training import world as micro

KIND = {"name": "pre_buffer", "layers": 2}
PARTS = {"geometry": tiny.GEOMETRY, "patch_embedding": {"name": "linear", "width": 16}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    micro.make_decoder(folder / "decoder")
    return folder


def in_front(name):
    return re.search(r"\.layers\.[01]\.", name) is not None


@pytest.mark.parametrize("family", sorted(EQUAL_LAYERS))
def test_layers_behind_new_ones_are_the_language_models(family):
    """New layers of zeros hand on what they read; so the others must give what they gave without them."""
    known, kind = tiny_model(family), PreBuffer(2)
    longer = AutoModelForCausalLM.from_config(kind.config_of(known.config)).eval()
    kind.extend(longer)
    weights = {kind.name_of(name): value for name, value in known.state_dict().items()}
    new = {name: torch.zeros_like(value) for name, value in longer.state_dict().items() if name not in weights}
    assert new and all(in_front(name) for name in new)
    longer.load_state_dict(weights | new)
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        assert_close(longer(input_ids=ids).logits, known(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
        cache = DynamicCache(config=longer.config)
        steps = [longer(input_ids=ids[:, i : i + 1], past_key_values=cache).logits for i in range(ids.shape[1])]
        assert_close(torch.cat(steps, 1), known(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["gemma3_text", "smollm3", "deepseek_v3", "gpt2"])
def test_other_families_are_refused(family):
    with pytest.raises(ConfigError, match=f"'pre_buffer' is not for decoders of the family '{family}'"):
        PreBuffer(2).config_of(tiny_config(family))
    config = EveConfig(text_config=tiny_config(family), decoder_kind=KIND, **PARTS)
    with torch.device("meta"), pytest.raises(ConfigError, match=f"'pre_buffer' is not for decoders of the family '{family}'"):
        EveForConditionalGeneration(config)


@pytest.fixture(scope="module")
def built(world):
    """Around a decoder of two layers."""
    blueprint = Blueprint(decoder=str(world / "decoder"), decoder_kind=KIND, **PARTS)
    blueprint.check()
    return blueprint, blueprint.build()


def test_what_a_new_model_begins_with(built, world):
    _, model = built
    known = AutoModelForCausalLM.from_pretrained(world / "decoder").state_dict()
    shift = lambda name: re.sub(r"layers\.(\d+)", lambda number: f"layers.{int(number[1]) + 2}", name)  # noqa: E731
    found = model.language_model.state_dict()
    for name, value in known.items():
        assert torch.equal(found[shift(name)], value), name
    new = {name: value for name, value in found.items() if name not in set(map(shift, known))}
    assert len(new) == 2 * len([name for name in known if ".layers.0." in name])
    for name, value in new.items():
        assert in_front(name)
        if value.ndim > 1:
            assert 0.017 < value.std() < 0.023, name
        else:
            assert torch.equal(value, torch.full_like(value, 1.0)), name


def test_it_is_the_same_from_the_same_seed(built):
    blueprint, model = built
    again = blueprint.build().state_dict()
    assert all(torch.equal(again[name], value) for name, value in model.state_dict().items())


def test_saved_and_read_again(built, world, tmp_path):
    """By whatever way; the config of a saved model is not extended once more."""
    blueprint, model = built
    model.save_pretrained(tmp_path)
    blueprint.processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 4 and config["decoder_kind"] == KIND
    for again in (
        lit_eve.load(tmp_path)[0],
        Blueprint(init_from=str(tmp_path)).build(),
        Blueprint(init_from=str(tmp_path), decoder=str(world / "decoder"), decoder_kind=KIND).build(),
    ):
        assert len(blocks_of(again.get_decoder())) == again.config.text_config.num_hidden_layers == 4
        found = again.state_dict()
        assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    for wanted in ({"name": "dense"}, {"name": "pre_buffer", "layers": 1}):
        with pytest.raises(ConfigError, match=r"model.decoder_kind: .* has the weights of .*'pre_buffer'"):
            Blueprint(init_from=str(tmp_path), decoder_kind=wanted).check()


def test_a_dense_model_gets_layers_in_front(world, tmp_path):
    dense = Blueprint(decoder=str(world / "decoder"), **PARTS)
    before = dense.build()
    before.save_pretrained(tmp_path)
    dense.processor.save_pretrained(tmp_path)
    blueprint = Blueprint(init_from=str(tmp_path), decoder_kind=KIND)
    blueprint.check()
    model = blueprint.build()
    kind = model.decoder_kind
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[kind.name_of(name)], value), name
    assert model.config.text_config.num_hidden_layers == 4


@pytest.mark.parametrize("more", [{}, {"image_attention": {"name": "bidirectional"}}, {"positions": {"name": "thw"}}])
def test_packed_samples_are_alone_and_everyone_sees_all_layers(more):
    model = tiny.model("qwen3", with_teacher=True, layer_interval=1, decoder_kind=KIND, **more)
    assert len(model.supervisions["aligner"].taps) == 4 + 1, "the aligner taps new layers too"
    tiny.assert_packed_like_alone(model, tiny.samples(model, [1, 2, 0]), "packed", checkpointing=True)
    batch = tiny.packed([tiny.samples(model, [1])])
    with torch.no_grad(), AttentionRecorder(model, rows=None) as attention:
        model(**batch)
    assert attention.num_layers == 4


def test_answers_with_a_cache_are_those_without():
    model = tiny.model("qwen3", decoder_kind=KIND).eval()
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    batch = {key: x for key, x in tiny.padded(tiny.samples(model, [1, 0]), "left").items() if "teacher" not in key}
    batch.pop("labels")
    assert torch.equal(model.generate(**batch, **options), model.generate(**batch, **options, use_cache=False))


@pytest.mark.parametrize("layers", [0, -1, 1.5, True, "2"])
def test_numbers_that_cannot_be(layers):
    with pytest.raises(ConfigError, match="layers must be a whole number of at least 1"):
        tiny.model("qwen3", decoder_kind={"name": "pre_buffer", "layers": layers})


def test_something_must_be_left_behind():
    with pytest.raises(ConfigError, match="of the 4 layers of text_config, 4 are new, and none is left"):
        tiny.model("qwen3", decoder_kind={"name": "pre_buffer", "layers": 4})
