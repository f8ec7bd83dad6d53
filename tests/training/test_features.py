"""The teacher's features from the shards: the same losses to the bit, without a teacher; what does not fit is named."""

from __future__ import annotations

import shutil
from contextlib import redirect_stdout
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lit_eve.cli import main as command
from lit_eve.data.features import FeatureFile, features_file
from lit_eve.data.shards.paths import list_shards
from lit_eve.errors import ConfigError
from lit_eve.planning.memory import Holdings, Layout, measure, meta_batch
from lit_eve.training.cli import main
from tests import towers
from tests.training import world as micro

ALIGNED = "{name: patch_alignment, aligner: {name: layerwise, layer_interval: 1, num_heads: 4}}"
DISTILLED = {"model.supervision": f"[{{name: distillation}}, {ALIGNED}]", "model.teacher_layer": 2, "model.aligner": "null"}


@pytest.fixture
def shards(world, tmp_path):
    for name in ("train", "validation"):
        shutil.copytree(world / name, tmp_path / name)
    return tmp_path


def settings(shards, **more) -> dict:
    return {"data.train": shards / "train", "data.validation": shards / "validation", "trainer.max_steps": 6} | more


def recipe(world, shards, tmp_path, **more) -> str:
    """A YAML with what a command line says."""
    path = tmp_path / "recipe.yaml"
    with pytest.raises(SystemExit), path.open("w") as file, redirect_stdout(file):
        main([*micro.arguments(world, tmp_path / "none", **settings(shards, **more)), "--print_config"])
    return str(path)


def pack(world, shards, tmp_path, *arguments: str, teacher=None, folder="train", **more) -> int:
    config = recipe(world, shards, tmp_path, **more)
    source, teacher = str(shards / folder), str(teacher or world / "teacher")
    return command(["pack", "--annotations", source, "--config", config, "--teacher", teacher, *arguments])


def losses(run, *tags: str) -> list[list[float]]:
    return [list(micro.scalars(run, tag).values()) for tag in tags]


@pytest.mark.parametrize(
    "more", [pytest.param({}, marks=pytest.mark.slow, id="alignment"), pytest.param(DISTILLED, id="distillation and alignment")]
)
def test_the_same_losses_without_a_teacher(world, shards, tmp_path, more, capsys):
    """Packed rows, images of all shapes, samples with none and two, read in this process and in two others."""
    for folder in ("train", "validation"):
        assert pack(world, shards, tmp_path, folder=folder, **more) == 0
    assert "features    " in capsys.readouterr().out
    tags = ["train/loss", "train/language_loss", "train/alignment_loss", "val/loss"]
    main(micro.arguments(world, tmp_path / "with", **settings(shards, **more)))
    for workers in (0, 2):
        kept = {"model.teacher_features": "true", "data.num_workers": workers}
        main(micro.arguments(world, tmp_path / f"kept{workers}", **settings(shards, **more, **kept)))
        found, expected = losses(tmp_path / f"kept{workers}", *tags), losses(tmp_path / "with", *tags)
        assert found == expected and len(found[0]) == 6 and all(found)
    weights = [load_file(tmp_path / run / "model/model.safetensors") for run in ("with", "kept0", "kept2")]
    assert all(torch.equal(value, one[name]) for one in weights[1:] for name, value in weights[0].items())


def test_no_teacher_is_in_memory(world, shards, tmp_path, monkeypatch):
    assert pack(world, shards, tmp_path) == 0
    module = micro.make_module(world, teacher_features=True)
    module.blueprint.check()
    module.configure_model()
    assert not list(module.model.teacher.parameters()) and module.teacher_grid is None
    assert module.model.teacher.width == 16 and module.teacher_features.states == (2,)


def test_a_plan_has_no_teacher(world):
    module = micro.make_module(world, teacher_features=True)
    model = module.blueprint.skeleton(planned=True)
    module.stage.apply(model)
    row = {"images": 1, "slots": 73, "patches": 256, "targets": 9, "samples": 2, "longest": 90}
    batch = meta_batch(model, 2, 128, row)
    assert batch["teacher_features"].shape == (2, 1, 64, 16) and "teacher_pixel_values" not in batch
    layout = Layout(1, False, 1, torch.float32, torch.float32)
    assert Holdings(model, {"name": "adamw"}).memory(layout, measure(model, batch, checkpointing=False)).teacher == 0


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.02), pytest.param("float16", 1e-3, marks=pytest.mark.slow)])
def test_smaller_features_change_the_loss_a_little(world, shards, tmp_path, precision, error):
    assert pack(world, shards, tmp_path, "--teacher-precision", precision) == 0
    file = features_file(list_shards(shards / "train")[0])
    assert load_file(file)["features"].dtype == getattr(torch, precision)
    alone = {"data.validation": "null", "trainer.max_steps": 1}
    main(micro.arguments(world, tmp_path / "with", **settings(shards, **alone)))
    main(micro.arguments(world, tmp_path / "kept", **settings(shards, **alone, **{"model.teacher_features": "true"})))
    (found,), (expected,) = (losses(tmp_path / run, "train/alignment_loss") for run in ("kept", "with"))
    assert found != expected and found == pytest.approx(expected, rel=error)


def test_what_is_there_is_not_made_again(world, shards, tmp_path):
    assert pack(world, shards, tmp_path) == 0
    files = [features_file(shard) for shard in list_shards(shards / "train")]
    times = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    files[0].with_name(f".{files[0].name}.part").write_bytes(b"half of it")  # of a process that was killed
    assert pack(world, shards, tmp_path) == 0
    assert [file.stat().st_mtime_ns for file in files][1:] == times[1:] and files[0].is_file()
    assert not list((shards / "train").glob(".*.part"))


def refused(world, shards, tmp_path, **more) -> str:
    kept = {"model.teacher_features": "true", "data.validation": "null"}
    with pytest.raises(SystemExit) as stopped:
        main(micro.arguments(world, tmp_path / "refused", **settings(shards, **kept | more)))
    message = str(stopped.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


def test_features_of_something_else_are_refused(world, shards, tmp_path, capsys):
    assert "has no features of a teacher" in refused(world, shards, tmp_path)
    assert pack(world, shards, tmp_path) == 0
    towers.make("clip").save_pretrained(tmp_path / "other")
    assert "was made for another weights" in refused(world, shards, tmp_path, **{"model.teacher": tmp_path / "other"})
    towers.make("siglip").save_pretrained(tmp_path / "siglip")
    assert "was made for another config" in refused(world, shards, tmp_path, **{"model.teacher": tmp_path / "siglip"})
    said = refused(world, shards, tmp_path, **{"model.teacher_layer": 3})
    assert "holds the teacher's hidden states [2], and 3 is needed" in said
    size = {"model.teacher_image_size": 128, "model.geometry.image_size": 128, "model.geometry.cells": 16}
    assert "was made for another geometry" in refused(world, shards, tmp_path, **size)
    without = {"model.teacher": "null", "model.aligner": "null"}
    assert "model.teacher_features needs model.teacher" in refused(world, shards, tmp_path, **without)
    shard, wanted = list_shards(shards / "train")[0], micro.make_module(world, teacher_features=True).teacher_features
    assert FeatureFile(shard, wanted).precision == "float32"
    for key, value in (("image_size", 32), ("normalisation", [[0.5] * 3] * 2)):
        with pytest.raises(ConfigError, match=f"was made for another {key}: .*, and here it is"):
            FeatureFile(shard, replace(wanted, facts={**wanted.facts, key: value}))
    capsys.readouterr()
    assert pack(world, shards, tmp_path, "--teacher-precision", "float16") == 2
    assert "is of float32, not float16; remove it first" in capsys.readouterr().err


def test_damaged_and_outdated_files(world, shards, tmp_path):
    assert pack(world, shards, tmp_path) == 0
    shard = list_shards(shards / "train")[0]
    file = features_file(shard)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert "is damaged, or no file of features" in refused(world, shards, tmp_path)
    file.write_bytes(whole)
    micro.make_shards(tmp_path / "others", 60, seed=9)
    shutil.copy(list_shards(tmp_path / "others")[0], shard)
    assert "was made for other samples" in refused(world, shards, tmp_path)


def test_the_recipe_is_needed(world, shards, capsys):
    assert command(["pack", "--annotations", str(shards / "train"), "--teacher", str(world / "teacher")]) == 2
    assert "--teacher needs --config" in capsys.readouterr().err
