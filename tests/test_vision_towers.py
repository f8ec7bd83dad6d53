"""Teachers of all families: their features are those of the plain models of transformers."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image

from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.losses import load_teacher
from lit_eve.models.checkpoints.towers import check_tower, empty_tower, tower_weights
from lit_eve.processing import EveV1Geometry
from lit_eve.processing.images import CLIP_MEAN, CLIP_STD
from lit_eve.vision_towers import FAMILIES, family_of, read_tower
from tests import towers

KINDS = list(towers.CONFIGS)
PREFIX = {"clip": 1, "siglip": 0, "dinov2": 1, "dinov2_swiglu": 1, "dinov2_registers": 3, "dinov3": 4}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_every_family_is_tried():
    assert {fields["model_type"] for fields in towers.CONFIGS.values()} == FAMILIES.keys()


@pytest.mark.parametrize("layer", [-1, -2, 0, 2])
def test_features_are_the_hidden_states_of_transformers(kind, layer, tmp_path):
    """Also of the last layer, behind which some families have a norm; and all of them at once."""
    plain = towers.make(kind)
    plain.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, layer)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        states = plain(pixels, output_hidden_states=True).hidden_states
    assert len(states) == 4
    expected = states[layer][:, PREFIX[kind] :]
    assert expected.shape == (2, 64, 16)
    assert torch.equal(teacher(pixels), expected)
    every = teacher(pixels, every=True)
    assert len(every) == teacher.depth + 1
    assert all(torch.equal(found, state[:, PREFIX[kind] :]) for found, state in zip(every, states, strict=False))
    assert torch.equal(every[-1], expected)


def test_other_image_sizes_are_those_of_transformers(kind, tmp_path):
    plain = towers.make(kind)
    plain.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path, image_size=96)
    assert (teacher.grid.image_size, teacher.grid.side) == (96, 12)
    pixels = torch.randn(1, 3, 96, 96)
    stretch = {"interpolate_pos_encoding": True} if kind in towers.WHOLE else {}
    with torch.no_grad():
        expected = plain(pixels, output_hidden_states=True, **stretch).hidden_states[-2][:, PREFIX[kind] :]
    assert torch.equal(teacher(pixels), expected)
    with pytest.raises(ConfigError, match="100 pixels has no whole patches of 8"):
        load_teacher(tmp_path, image_size=100)


def test_images_that_are_no_squares_lie_on_the_mean_colour(kind, tmp_path):
    """A wide image: features inside it are those of the square that the plain model sees."""
    plain = towers.make(kind)
    plain.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    photo = Image.effect_noise((128, 64), 90).convert("RGB")
    geometry = EveV1Geometry(patch_size=4, image_size=64, cells=8)
    canvas = teacher.grid.canvas(photo, geometry)
    mean, std = (torch.tensor(side)[:, None, None] for side in family_of(plain.config).pixels)
    assert canvas[:, 0, 0].tolist() == [int(255 * part) for part in mean.flatten().tolist()]
    pixels = ((canvas / 255 - mean) / std)[None]
    with torch.no_grad():
        expected = plain(pixels, output_hidden_states=True).hidden_states[-2][:, PREFIX[kind] :]
    assert torch.equal(teacher(pixels), expected)


def test_weights_are_streamed_under_the_names_of_the_model(kind, tmp_path):
    plain = towers.make(kind)
    plain.save_pretrained(tmp_path)
    check_tower(str(tmp_path), "model.teacher")
    config, _ = read_tower(tmp_path, "key")
    streamed = dict(tower_weights(str(tmp_path), empty_tower(config, "tower", "key"), "key"))
    assert streamed.keys() == plain.state_dict().keys()
    assert all(torch.equal(streamed[name], value) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("kind", towers.WHOLE)
def test_of_whole_models_the_vision_half_is_taken(kind, tmp_path):
    whole = towers.make_whole(kind)
    whole.save_pretrained(tmp_path)
    check_tower(str(tmp_path), "model.teacher")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.vision_model(pixels, output_hidden_states=True).hidden_states[-2][:, PREFIX[kind] :]
    assert torch.equal(load_teacher(tmp_path)(pixels), expected)
    config, _ = read_tower(tmp_path, "key")
    streamed = dict(tower_weights(str(tmp_path), empty_tower(config, "tower", "key"), "key"))
    assert all(torch.equal(streamed[name], value) for name, value in whole.vision_model.state_dict().items())


# ---- normalisation


def test_pixels_are_normalised_as_the_preprocessor_says(tmp_path):
    towers.make("siglip").save_pretrained(tmp_path)
    assert read_tower(tmp_path, "key")[1] == ((0.5,) * 3, (0.5,) * 3)
    written = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": written}))
    assert read_tower(tmp_path, "key")[1] == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written | {"image_mean": [0.7, 0.7, 0.7]}))
    teacher = load_teacher(tmp_path)
    assert teacher.grid.mean == (0.7, 0.7, 0.7) and teacher.std == (0.4, 0.5, 0.6)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written | {"do_normalize": False}))
    assert read_tower(tmp_path, "key")[1] == ((0.0,) * 3, (1.0,) * 3)
    for wrong in ("{", json.dumps(written | {"image_mean": "x"}), json.dumps(written | {"image_std": [1, 1, 0]})):
        (tmp_path / "preprocessor_config.json").write_text(wrong)
        with pytest.raises(CheckpointError, match=r"^key: .*preprocessor_config\.json"):
            read_tower(tmp_path, "key")


def test_clip_needs_no_preprocessor(tmp_path):
    towers.make("clip").save_pretrained(tmp_path)
    assert read_tower(tmp_path, "key")[1] == (CLIP_MEAN, CLIP_STD)


# ---- refused


def test_layers_that_do_not_exist(kind, tmp_path):
    towers.make(kind).save_pretrained(tmp_path)
    for layer in (4, -5):
        with pytest.raises(ConfigError, match=f"teacher_layer = {layer} does not exist: the .* has 3 layers"):
            load_teacher(tmp_path, layer)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "siglip2_vision_model"},
            r"is of the type 'siglip2_vision_model' \(NaFlex\), whose images have no fixed",
        ),
        (
            {"model_type": "vit"},
            "is of the type 'vit'; a vision encoder must be a CLIP, SigLIP, DINOv2, DINOv2 with registers or",
        ),
        ({"image_size": [64, 32]}, "describes no DINOv2: image_size is"),
        ({"num_channels": 4}, "its images have 4 channels, not 3"),
        ({"num_hidden_layers": 4}, "lacks encoder.layer.3"),
        ({"hidden_size": 32}, r"has embeddings.cls_token of the shape \(1, 1, 16\), where its config.json says \(1, 1, 32\)"),
        ({"num_attention_heads": 0}, "its config.json describes no DINOv2"),
    ],
)
def test_what_is_refused(changes, message, tmp_path):
    towers.make("dinov2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as error:
        check_tower(str(tmp_path), "model.teacher")
    assert str(error.value).startswith("model.teacher: ") and "\n" not in str(error.value)


def test_damaged_files_of_all_families(kind, tmp_path):
    towers.make(kind).save_pretrained(tmp_path / "whole")
    for number, damage in enumerate(("cut", "gone", "lacking")):
        folder = shutil.copytree(tmp_path / "whole", tmp_path / str(number))
        file = folder / "model.safetensors"
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:3000])
        elif damage == "gone":
            file.unlink()
        else:
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
        with pytest.raises(CheckpointError, match=r"^model\.teacher: .*(truncated|no weights|lacks)"):
            check_tower(str(folder), "model.teacher")
