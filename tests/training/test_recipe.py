"""Recipes are read without being run; a YAML may be laid over another."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from lit_eve.data.lengths import fingerprint
from lit_eve.errors import CheckpointError, ConfigError
from lit_eve.training.cli import EveCLI, main
from lit_eve.training.recipe import read_recipe
from tests.training import world as micro


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def layers(tmp_path):
    """A file over a file in another folder over a shipped one."""
    shipped = micro.ROOT / "experiments/nano/1_prealign.yaml"
    write(tmp_path / "below" / "middle.yaml", {"base": str(shipped), "data": {"init_args": {"rows": 3}}, "model": {"lr": 0.25}})
    return write(tmp_path / "above" / "top.yaml", {"base": "../below/middle.yaml", "model": {"lr": 0.5}})


def test_a_file_is_laid_over_its_base(layers):
    recipe = read_recipe(str(layers), "--data.seed=7")
    assert (recipe.module.stage.lr, recipe.data.rows, recipe.data.seed) == (0.5, 3, 7)
    assert recipe.module.blueprint.decoder == "runs/nano/language_model"
    assert type(recipe.data).__name__ == "PrealignDataModule" and recipe.template == "plain"
    assert recipe.trainer.default_root_dir == "runs/nano/1_prealign"


def test_reading_a_recipe_changes_nothing(layers):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    read_recipe("--config", str(layers))
    assert torch.equal(torch.rand(3), expected)


def test_a_run_keeps_the_whole_and_can_be_called_from_it(world, layers, tmp_path):
    arguments = [word for word in micro.arguments(world, tmp_path / "run") if not word.startswith("--model.lr=")]
    arguments[arguments.index("--config") + 1] = str(layers)
    EveCLI(args=arguments)
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["base"] is None and saved["model"]["lr"] == 0.5
    layers.write_text("base: nowhere.yaml")  # no longer needed
    EveCLI(args=["fit", "--config", str(tmp_path / "run" / "config.yaml")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"base": "nowhere.yaml"}, r"top\.yaml: its base .*nowhere\.yaml cannot be read"),
        ({"base": "top.yaml"}, r"top\.yaml: its base top\.yaml leads back to itself"),
        ({"base": ["a.yaml"]}, r"top\.yaml: base must be the path of a YAML file"),
        ({"base": "../below/middle.yaml", "model": {"learning_rate": 1}}, "learning_rate"),
    ],
)
def test_bad_files(layers, content, message):
    write(layers, content)
    with pytest.raises(ConfigError, match=message):
        read_recipe(str(layers))


def test_unknown_keys_and_absent_files_are_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_recipe("experiments/nowhere.yaml")
    with pytest.raises(ConfigError, match="rosw"):
        read_recipe(str(micro.ROOT / "experiments/nano/1_prealign.yaml"), "--data.rosw=2")


# ---- the shape of a model before it exists


def test_a_later_stage_has_a_shape_before_the_earlier_one_was_run(world):
    module = micro.make_module(world, init_from="runs/not/there/yet")
    skeleton = module.blueprint.skeleton(planned=True)
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    real = micro.make_module(world)
    real.configure_model()
    shapes = lambda model: {name: p.shape for name, p in model.named_parameters()}  # noqa: E731
    assert shapes(skeleton) == shapes(real.model)
    with pytest.raises(CheckpointError, match="there is no 'runs/not/there/yet'"):
        module.configure_model()


def test_a_later_stage_has_a_processor_before_the_earlier_one_was_run(world, tmp_path):
    """lit-eve pack and lit-eve plan count the tokens of stage 3 before stage 2 was trained."""
    first = micro.arguments(world, tmp_path / "1")
    later = [*first[1:], "--model.init_from=runs/not/there/yet", "--model.stage=finetune", "--model.template=vicuna_v1"]
    planned, real = read_recipe(*later).processor, read_recipe(*first[1:]).processor
    assert planned.image_token_id == real.image_token_id and planned.geometry == real.geometry
    assert fingerprint(planned, "vicuna_v1") == fingerprint(real, "vicuna_v1")
    with pytest.raises(CheckpointError, match="there is no 'runs/not/there/yet'"):
        _ = read_recipe(*later, "--model.decoder=null").processor


def test_well_known_models_need_no_network_to_be_planned():
    vicuna, clip = "lmsys/vicuna-7b-v1.5", "openai/clip-vit-large-patch14-336"
    recipe = micro.LitEve(decoder=vicuna, teacher=clip)
    skeleton = recipe.blueprint.skeleton(planned=True)
    count = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert count(skeleton.language_model) == 6_738_415_616
    assert len(skeleton.teacher.backbone.encoder.layers) == 23


def test_the_decoder_beside_init_from_must_be_the_one_it_was_made_around(world, tmp_path):
    EveCLI(args=micro.arguments(world, tmp_path / "run"))
    start = {"init_from": str(tmp_path / "run")}
    micro.make_module(world, **start).configure_model()
    other = micro.make_decoder(tmp_path / "other")
    config = json.loads((other / "config.json").read_text()) | {"num_hidden_layers": 3}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="made around another decoder .*num_hidden_layers: 2 -> 3"):
        micro.make_module(world, decoder=str(other), **start).configure_model()


@pytest.mark.parametrize("path", ["nano_hard/1_prealign.yaml", "models/vora/nano/1_pretrain.yaml"])
def test_settings_are_those_that_print_config_prints(path, capsys):
    arguments = ["--config", str(micro.ROOT / "experiments" / path), "--model.lr=0.5", "--trainer.max_steps=7"]
    with pytest.raises(SystemExit):
        main(["fit", *arguments, "--print_config"])
    assert read_recipe(*arguments).settings == yaml.safe_load(capsys.readouterr().out)
