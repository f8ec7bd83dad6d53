"""Recipes with a vision tower: named once, streamed into the model, frozen or trained by the stage, planned."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import CLIPVisionModel

import lit_eve
from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.planning.flops import Workload, training_flops
from lit_eve.training.cli import main
from lit_eve.training.stages import get_stage
from tests import towers
from tests.training import world as micro

GEOMETRY = {"name": "square", "image_size": 64, "patch_size": 8}
FROZEN = "{name: projector, lr: 1e-2, rules: [{pattern: patch_embedding.tower, trainable: false}, {pattern: projector}]}"


def spec(folder, **arguments) -> dict:
    return {"name": "vision_tower", "tower": str(folder), **arguments}


def module_of(world, folder, **kwargs):
    settings = {"patch_embedding": spec(folder), "geometry": GEOMETRY, "aligner": None, "teacher": None}
    return micro.make_module(world, **settings | kwargs)


@pytest.fixture
def clip(tmp_path):
    towers.make_whole("clip").save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def plain_weights(folder) -> dict[str, torch.Tensor]:
    plain = CLIPVisionModel.from_pretrained(folder).state_dict()
    dropped = ("post_layernorm.", "encoder.layers.2.")
    return {f"patch_embedding.tower.{name}": value for name, value in plain.items() if not name.startswith(dropped)}


@pytest.mark.parametrize("class_token", [False, True])
def test_weights_are_those_of_the_named_encoder(world, clip, tmp_path, class_token):
    module = module_of(world, clip, geometry=GEOMETRY | {"class_token": class_token})
    module.blueprint.check()
    module.configure_model()
    weights, expected = module.model.state_dict(), plain_weights(clip)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    own = {name for name in weights if name.startswith("patch_embedding.")} - expected.keys()
    assert own == ({"patch_embedding.class_embedding"} if class_token else set())
    assert all(value.isfinite().all() for value in weights.values())
    module.model.save_pretrained(tmp_path / "model")
    module.processor.save_pretrained(tmp_path / "model")
    shutil.rmtree(clip)  # the saved model needs it no more
    loaded, _ = lit_eve.load(tmp_path / "model")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())
    assert loaded.config.patch_embedding["tower"]["model_type"] == "clip_vision_model"
    later = module_of(world, clip, init_from=str(tmp_path / "model"), decoder=None, patch_embedding=None, geometry=None)
    later.blueprint.check()
    later.configure_model()
    assert all(torch.equal(later.model.state_dict()[name], value) for name, value in weights.items())


def test_stages_freeze_and_train_it(world, clip, tmp_path):
    """Frozen in the first stage, trained in the second, resumed in none: the tower moves only where it trains."""
    common = {"model.teacher": "null", "model.aligner": "null", "data.validation": "null", "trainer.max_steps": 2}
    first = {
        "model.patch_embedding": f"{{name: vision_tower, tower: {clip}}}",
        "model.geometry": "{name: square, image_size: 64, patch_size: 8}",
        "model.stage": FROZEN,
    }
    command = [
        argument
        for argument in micro.arguments(world, tmp_path / "first", **common)
        if not argument.startswith(("--model.geometry.", "--model.patch_embedding.", "--model.aligner."))
    ]
    main([*command, *(f"--{key}={value}" for key, value in first.items())])
    weights = lit_eve.load(tmp_path / "first")[0].state_dict()
    expected = plain_weights(clip)
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    main(micro.arguments(world, tmp_path / "second", "2_pretrain", **{"model.init_from": tmp_path / "first"}, **common))
    weights = lit_eve.load(tmp_path / "second")[0].state_dict()
    assert not any(torch.equal(weights[name], value) for name, value in expected.items() if ".layers." in name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("cut", r"^model\.patch_embedding\.tower: .*truncated"),
        ("gone", r"^model\.patch_embedding\.tower: .*no weights"),
        ("decoder", r"^model\.patch_embedding\.tower: .* is of the type 'llama'; a vision encoder must be"),
        ("nowhere", r"^model\.patch_embedding\.tower: .*nowhere"),
    ],
)
def test_files_are_looked_at_before_data_is_read(world, clip, change, message):
    file = clip / "model.safetensors"
    folder = {"decoder": world / "decoder", "nowhere": clip / "nowhere"}.get(change, clip)
    if change == "cut":
        file.write_bytes(file.read_bytes()[:4000])
    elif change == "gone":
        file.unlink()
    with pytest.raises(CheckpointError, match=message):
        module_of(world, folder).blueprint.check()


@pytest.mark.parametrize(("filter_", "said"), [(2, "that a bilinear filter resized"), (3, None), (None, None)])
def test_images_resized_in_another_way_are_mentioned(world, clip, recwarn, filter_, said):
    content = {} if filter_ is None else {"resample": filter_}
    (clip / "preprocessor_config.json").write_text(json.dumps(content))
    module_of(world, clip).blueprint.check()
    warned = [str(one.message) for one in recwarn if "resized" in str(one.message)]
    assert len(warned) == (said is not None) and all(said in one and str(clip) in one for one in warned)


def test_pixels_must_be_those_of_the_encoder(world, tmp_path):
    towers.make("siglip").save_pretrained(tmp_path / "siglip")
    with pytest.raises(ConfigError, match=r"^model\.image_mean is \[0\.48.*siglip, was trained with \[0\.5, 0\.5, 0\.5\]: set"):
        module_of(world, tmp_path / "siglip").blueprint.check()
    half = [0.5, 0.5, 0.5]
    module = module_of(world, tmp_path / "siglip", image_mean=half, image_std=half)
    module.configure_model()
    module.model.save_pretrained(tmp_path / "model")
    module.processor.save_pretrained(tmp_path / "model")
    later = {"init_from": str(tmp_path / "model"), "decoder": None, "patch_embedding": None, "geometry": None}
    with pytest.raises(ConfigError, match=r"^model\.image_std is .*, but the tower, that of .*model', was trained with"):
        module_of(world, "", **later, image_std=[0.4, 0.5, 0.6]).blueprint.check()
    towers.make("siglip", num_hidden_layers=5).save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"has another tower \(tower.num_hidden_layers: 3 -> 5\)"):
        module_of(world, "", **later | {"patch_embedding": spec(tmp_path / "other")}).blueprint.check()


def test_a_plan_counts_it(world, clip):
    """Forward and backward pass of what trains, forward pass alone of what is frozen."""
    config = module_of(world, clip).blueprint.config
    workload = Workload(torch.tensor([70, 70]).numpy(), torch.tensor([[8, 8], [8, 8]]).numpy(), 10)
    trained = training_flops(config, workload, "pretrain")["patch_embedding"]
    rules = [{"pattern": "patch_embedding.tower", "trainable": False}, {"pattern": ".*"}]
    frozen = training_flops(config, workload, get_stage({"name": "frozen", "lr": 1e-3, "rules": rules}))["patch_embedding"]
    tokens, width, inner = 65, 16, 32
    layer = 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * width * tokens**2
    assert trained.forward == frozen.forward == 2 * (2 * layer + 2 * 64 * width * 3 * 64)
    assert frozen.backward == 0 and trained.backward > 1.7 * trained.forward
