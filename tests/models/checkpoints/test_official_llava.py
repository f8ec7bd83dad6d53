"""Checkpoints of LLaVA-1.5: each form in which they are found, conversion, training from them, clear words about the rest."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import lit_eve
from lit_eve.errors import CheckpointError, LitEveError
from lit_eve.models.checkpoints.conversion import convert
from lit_eve.models.checkpoints.official import LlavaLayout
from lit_eve.models.checkpoints.weights import iterate_weights
from lit_eve.training.blueprint import Blueprint
from tests.models import reference_llava as reference
from tests.models.checkpoints.test_convert import edit, rewrite


@pytest.fixture
def folder(tmp_path):
    reference.write_checkpoint(tmp_path / "llava")
    return tmp_path / "llava"


@pytest.mark.parametrize("form", ["hub", "saved", "memory"])
def test_every_form_is_the_same_model(tmp_path, form):
    theirs = reference.write_checkpoint(tmp_path, form)
    model, processor = lit_eve.load(tmp_path)
    weights, layout = model.state_dict(), LlavaLayout(2)
    named = {name: value for key, tensor in theirs.state_dict().items() for name, value in layout.import_weight(key, tensor)}
    assert named.keys() == weights.keys() and all(torch.equal(weights[name], value) for name, value in named.items())
    assert not any(".layers.2." in name or "post_layernorm" in name for name in weights if name.startswith("patch"))
    geometry = {"name": "square", "patch_size": 8, "image_size": 32, "fit": "crop", "background": (122, 116, 104)}
    assert geometry.items() <= processor.geometry.to_dict().items() and model.geometry == processor.geometry
    assert processor.image_token_id == model.config.image_token_id == reference.IMAGE
    assert model.generation_config.suppress_tokens == [reference.IMAGE]
    assert processor.template == "vicuna_v1" and model.config.text_config.vocab_size == 520


@pytest.mark.parametrize(
    ("keys", "fit"),
    [
        ({"do_pad": True}, "pad"),
        ({"size": 32}, "crop"),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, "stretch"),
        (None, "pad"),
    ],
)
def test_how_photos_become_squares(folder, keys, fit):
    if keys is None:
        (folder / "preprocessor_config.json").unlink()
    else:
        edit(folder / "preprocessor_config.json", **keys)
    assert lit_eve.load(folder)[1].geometry.fit == fit


def test_saved_and_converted(folder, tmp_path):
    model, processor = lit_eve.load(folder)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    result = convert(folder, tmp_path / "converted", max_shard_size="20KB")
    assert result.num_weights == len(model.state_dict())
    for name in ("saved", "converted"):
        again, loaded = lit_eve.load(tmp_path / name)
        assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
        assert loaded.to_dict() == processor.to_dict()
        assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert_close(dict(iterate_weights(folder)), dict(model.state_dict()), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="no official checkpoint can be written of patch_embedding.name = 'vision_tower'"):
        convert(tmp_path / "converted", tmp_path / "back")


def test_a_siglip_and_another_decoder(tmp_path):
    vision = reference.CONFIG["vision_config"] | {"model_type": "siglip_vision_model", "vision_use_head": False}
    text = reference.CONFIG["text_config"] | {"model_type": "qwen2", "num_key_value_heads": 2}
    changes = {"vision_config": vision, "text_config": text, "vision_feature_select_strategy": "full"}
    theirs = reference.write_checkpoint(tmp_path, "saved", reference.model(**changes))
    edit(tmp_path / "processor_config.json", image_processor=reference.PREPROCESSOR)
    model, _ = lit_eve.load(tmp_path)
    layout = LlavaLayout(2)
    named = {name: value for key, tensor in theirs.state_dict().items() for name, value in layout.import_weight(key, tensor)}
    assert_close(dict(model.state_dict()), named, rtol=0, atol=0)
    edit(tmp_path / "config.json", vision_feature_select_strategy="default")
    with pytest.raises(CheckpointError, match="vision_feature_select_strategy is 'default'; .* can only be 'full'"):
        lit_eve.load(tmp_path)


def test_a_training_starts_from_it(folder):
    blueprint = Blueprint(init_from=str(folder), geometry={"fit": "pad"})
    blueprint.check()
    model = blueprint.build()
    assert model.geometry.fit == "pad"
    assert_close(dict(model.state_dict()), dict(lit_eve.load(folder)[0].state_dict()), rtol=0, atol=0)


# ---- refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"image_newline": torch.ones(2)}, "'image_newline' is no weight of an official LLaVA-1.5 checkpoint"),
        (lambda w: {k: v for k, v in w.items() if "linear_2" not in k}, r"missing.*projector\.2\.bias"),
        (
            lambda w: {k: v for k, v in w.items() if "layers.1." not in k or "vision" not in k},
            r"missing.*tower\.encoder\.layers",
        ),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(CheckpointError, match=message):
        lit_eve.load(folder)


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("config.json", {"vision_feature_layer": [-2, -1]}, r"vision_feature_layer is \[-2, -1\]; features of several layers"),
        ("config.json", {"vision_feature_layer": -9}, "vision_feature_layer = -9 does not exist: the CLIP has 3 layers"),
        ("config.json", {"vision_feature_select_strategy": "full"}, "is 'full'; of this vision tower it can only be 'default'"),
        ("config.json", {"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'"),
        ("config.json", {"multimodal_projector_bias": False}, "multimodal_projector_bias is False"),
        ("config.json", {"vision_config": {"model_type": "dinov2"}}, "is a CLIP or a SigLIP, not a dinov2"),
        ("config.json", {"text_config": {"model_type": "llama", "vocab_size": "x"}}, "describes no LLaVA"),
        ("preprocessor_config.json", {"resample": 2}, "resample is 2; of a LLaVA-1.5 it can only be 3"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 40}}, "size and crop_size are .*40.* can only be 32"),
        ("preprocessor_config.json", {"do_center_crop": False}, "can only be 32"),
    ],
)
def test_configs_that_are_refused(folder, file, keys, message):
    edit(folder / file, **keys)
    with pytest.raises(LitEveError, match=message):
        lit_eve.load(folder)


def test_image_size_is_known(folder):
    with pytest.raises(CheckpointError, match="image_size has no meaning for LLaVA-1.5"):
        lit_eve.load(folder, image_size=300)
