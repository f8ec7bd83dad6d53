"""lit_eve.load, teachers, and checkpoints that are not what they should be."""

from __future__ import annotations

import json
import shutil
import warnings

import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPVisionConfig, CLIPVisionModel

import lit_eve
from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.models.checkpoints.official import titles
from tests.models import reference, tiny
from tests.tiny_model import make_tiny


def test_official_folder_with_its_relative_towers(official_folder):
    model, processor = lit_eve.load(official_folder, teacher=True)
    batch = reference.padded_batch("b1_image", model.geometry, model.config.image_token_id)
    expected = reference.results()["batches"]["b1_image"]
    assert model(**batch).loss.item() == pytest.approx(expected["total_loss"]["value"], abs=1e-5)
    assert processor.tokenizer.bos_token_id == 1


def test_official_weights_in_torch_files(official_folder):
    weights = reference.official_weights()
    (official_folder / "model.safetensors").unlink()
    half = len(weights) // 2
    for part, keys in enumerate([list(weights)[:half], list(weights)[half:]]):
        torch.save({key: weights[key] for key in keys}, official_folder / f"pytorch_model-{part}.bin")
    model, _ = lit_eve.load(official_folder)
    assert torch.equal(model.get_output_embeddings().weight, weights["lm_head.weight"])


def test_keys_that_the_official_training_adds_are_not_of_the_decoder(official_folder):
    expected = reference.LAYOUT.read_config(official_folder).text_config.to_dict()
    config = json.loads((official_folder / "config.json").read_text())
    added = {"vision_tower_lr": 2e-5, "image_grid_pinpoints": [[336, 672]], "rope_theta": 5000.0}
    (official_folder / "config.json").write_text(json.dumps(config | added))
    found = reference.LAYOUT.read_config(official_folder).text_config.to_dict()
    assert found.keys() == expected.keys()
    assert found["rope_parameters"]["rope_theta"] == 5000.0


def test_every_official_weight_has_one_place():
    ours = [reference.LAYOUT.import_name(key) for key in reference.official_weights()]
    kept = [name for name in ours if name is not None]
    assert len(kept) == len(set(kept))
    dropped = {key for key, name in zip(reference.official_weights(), ours, strict=True) if name is None}
    assert all(".vision_clip." in key or ".clip_layer." in key for key in dropped)
    with pytest.raises(CheckpointError, match="model.unknown.weight"):
        reference.LAYOUT.import_name("model.unknown.weight")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").write_text("{"), "no valid JSON"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]), "cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: shutil.rmtree(f / "vision_tokenizer"), "vision_tokenizer"),
        (lambda f: shutil.rmtree(f / "clip_tiny"), "clip_tiny"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no tokenizer"),
    ],
)
def test_broken_official_folders(official_folder, break_it, message):
    break_it(official_folder)
    with pytest.raises(CheckpointError, match=message):
        lit_eve.load(official_folder, teacher=True)


def test_missing_weights_are_named(official_folder):
    config = json.loads((official_folder / "config.json").read_text())
    (official_folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 12}))
    with pytest.raises(CheckpointError, match=r"layers\.1\d"):
        lit_eve.load(official_folder)


def test_a_model_is_loaded_from_the_home_that_it_was_saved_in(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for part in make_tiny():
        part.save_pretrained("~/saved")
    model, processor = lit_eve.load("~/saved")
    assert model.config.image_token_id == processor.image_token_id
    assert not list((tmp_path / "here").iterdir())


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is no folder"):
        lit_eve.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        lit_eve.load(tmp_path)


def test_a_model_of_another_kind_is_named(tmp_path):
    tiny.model().language_model.save_pretrained(tmp_path)
    assert titles().startswith("EVE v1, EVE v2")
    with pytest.raises(
        CheckpointError, match=f"neither an EVE of lit_eve nor an official {titles()}: config.json says 'llama'"
    ):
        lit_eve.load(tmp_path)


def test_the_teacher_is_never_saved_trained_or_switched_to_train_mode(tmp_path):
    model = tiny.model(with_teacher=True).train()
    assert not any("teacher" in key for key in model.state_dict())
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert not any(module.training for module in model.teacher.modules())
    model.load_state_dict(model.state_dict())  # strict, without the teacher's keys
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "aligner.safetensors"} <= names
    from safetensors.torch import load_file

    keys = set(load_file(tmp_path / "model.safetensors"))
    assert not any(key.startswith(("teacher", "aligner")) for key in keys)


def test_a_teacher_without_a_trained_aligner_is_told(tmp_path):
    model, processor = make_tiny()
    model.config.aligner = {"name": "layerwise", "layer_interval": 1}
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    CLIPVisionModel(CLIPVisionConfig(**size, image_size=64, patch_size=8)).save_pretrained(tmp_path / "teacher")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="model holds no trained aligner"):
        lit_eve.load(tmp_path / "model", teacher=tmp_path / "teacher")
    model.attach_teacher(tmp_path / "teacher")
    model.save_pretrained(tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded, _ = lit_eve.load(tmp_path / "model", teacher=True)
    expected = model.aligner.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.aligner.state_dict().items())


def test_a_strict_load_still_misses_the_students_keys():
    model = tiny.model(with_teacher=True)
    weights = model.state_dict()
    del weights["aligner.input_layer.bias"]
    with pytest.raises(RuntimeError, match="aligner.input_layer.bias"):
        model.load_state_dict(weights)


def test_a_teacher_of_another_size_is_refused():
    geometry = tiny.GEOMETRY | {"image_size": 48, "cells": 6}
    with pytest.raises(ConfigError, match="grid of 8 x 8 patches does not lie on .* has 6 tokens, no multiple of 8"):
        tiny.model(geometry=geometry, with_teacher=True)


def test_the_teacher_runs_only_the_layers_that_are_read():
    vision = tiny.teacher()
    assert len(vision.backbone.encoder.layers) == 2  # of three


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_embedding": {"name": "eve_v9"}}, "unknown patch embedding 'eve_v9'; known: .*eve_v1"),
        ({"patch_embedding": {"name": "eve_v1", "widht": 8}}, "no argument 'widht'"),
        ({"patch_embedding": {"width": 8}}, "needs a 'name'"),
        ({"patch_embedding": {"name": "eve_v1", "width": 20}}, "does not divide"),
        ({"projector": {"name": "identity"}}, "width = 32"),
        ({"geometry": {"image_sise": 64}}, "image_sise"),
    ],
)
def test_typos_in_the_architecture(arguments, message):
    with pytest.raises(ConfigError, match=message):
        tiny.model(**arguments)


def test_loading_does_not_import_what_a_config_names(tmp_path):
    model = tiny.model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["patch_embedding"] = {"name": "os.system"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"unknown patch embedding 'os\.system'"):
        lit_eve.EveForConditionalGeneration.from_pretrained(tmp_path)


def test_embeddings_of_an_image_do_not_depend_on_its_neighbours():
    model = tiny.model()
    one, two = tiny.samples(model, [1], seed=3)[0], tiny.samples(model, [1], seed=4)[0]
    batch = tiny.packed([[one, two]])
    alone = model(**tiny.padded([two]), logits_to_keep=0).logits[0]
    together = model(**batch, logits_to_keep=0).logits[0, len(one["input_ids"]) :]
    assert_close(together, alone, rtol=1e-4, atol=1e-5)
