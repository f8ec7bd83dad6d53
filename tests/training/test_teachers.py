"""Teachers: those of all families train; damaged and foreign ones are named in one sentence before data is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, Siglip2Config

import lit_eve
from lit_eve.errors import CheckpointError
from lit_eve.training.cli import main
from tests import towers
from tests.training import world as micro

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50}


def refused(world: Path, **overrides) -> str:
    """What `train.py fit` says, before anything of the data was indexed."""
    data = world / "unindexed"
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(world / "train", data, ignore=shutil.ignore_patterns(".lit_eve"))
    with pytest.raises(SystemExit) as stopped:
        main(micro.arguments(world, world / "refused", **{"data.train": data, "data.validation": "null"} | overrides))
    assert not (data / ".lit_eve").exists()
    message = str(stopped.value.code)
    assert message.startswith("error: ") and "\n" not in message
    return message


def teacher(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    if kind == "naflex":
        vision = {key: value for key, value in VISION.items() if key != "image_size"}
        AutoModel.from_config(Siglip2Config(text_config=TEXT, vision_config=vision)).save_pretrained(folder)
    elif kind == "decoder":
        micro.make_decoder(folder)
    elif kind == "cells":
        towers.make("dinov3", image_size=80).save_pretrained(folder)
    elif kind == "empty":
        folder.mkdir()
    elif kind == "other sizes":
        CLIPVisionModel(CLIPVisionConfig(**VISION | {"patch_size": 16})).save_pretrained(folder)
    else:
        CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(folder)
        weights = folder / "model.safetensors"
        if kind == "cut":
            weights.write_bytes(weights.read_bytes()[:5000])
        elif kind == "no weights":
            weights.unlink()
        elif kind == "config of another":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
        elif kind == "deeper config":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
        elif kind == "broken config":
            (folder / "config.json").write_text("{")
        elif kind == "heads":
            config = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
        elif kind == "pointer":
            weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
        elif kind == "file":
            return weights
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("naflex", "is of the type 'siglip2' (NaFlex), whose images have no fixed size"),
        ("decoder", "is of the type 'llama'; a vision encoder must be a CLIP"),
        ("cells", "the teacher's grid of 10 x 10 patches does not lie on the student's"),
        ("empty", "holds no config.json: it is no vision encoder"),
        ("cut", "cannot be read, it may be truncated"),
        ("no weights", "has a config.json but no weights"),
        ("config of another", "where its config.json says"),
        ("deeper config", "lacks "),
        ("other sizes", "the teacher's grid of 4 x 4 patches does not lie on the student's"),
        ("broken config", "is not a valid JSON file"),
        ("heads", "its config.json describes no CLIP"),
        ("pointer", "is a pointer of Git LFS and not the file itself: git lfs pull"),
        ("file", "is a file; give the folder that it lies in"),
    ],
)
def test_what_is_no_teacher(world, tmp_path, kind, message):
    folder = teacher(tmp_path / "a teacher", kind)
    said = refused(world, **{"model.teacher": folder})
    assert message in said
    assert kind in ("other sizes", "cells") or str(folder) in said


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Makes a folder what the hub's cache holds under a name; there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(folder: Path, name: str) -> str:
        repository = tmp_path / "cache" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, repository / "snapshots" / "abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
        return name

    return put


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("decoder", "someone/a-teacher is of the type 'llama'; a vision encoder must be a CLIP"),
        ("cut", "cannot be read, it may be truncated"),
        ("no weights", "abc has a config.json but no weights"),
        ("deeper config", "someone/a-teacher lacks "),
    ],
)
def test_a_teacher_of_the_hub_is_looked_at_in_the_cache(world, tmp_path, cache, kind, message):
    name = cache(teacher(tmp_path / "a teacher", kind), "someone/a-teacher")
    said = refused(world, **{"model.teacher": name})
    assert said.startswith("error: model.teacher: ") and message in said


def test_what_no_cache_holds_is_told_before_data_is_read(world, cache):
    said = refused(world, **{"model.teacher": "someone/a-teacher"})
    assert said.startswith("error: model.teacher: someone/a-teacher is no folder here, the Hugging Face hub cannot be reached")


def test_a_whole_teacher_in_the_cache_is_taken(world, tmp_path, cache):
    module = micro.make_module(world, teacher=cache(teacher(tmp_path / "a teacher", "clip"), "someone/a-teacher"))
    module.blueprint.check()
    module.configure_model()
    assert module.model.config.teacher == "someone/a-teacher"


def test_a_decoder_in_the_cache_without_weights(world, tmp_path, cache):
    folder = shutil.copytree(world / "decoder", tmp_path / "decoder")
    (folder / "model.safetensors").unlink()
    said = refused(world, **{"model.decoder": cache(folder, "someone/a-decoder")})
    assert said.startswith("error: model.decoder: ") and "abc has a config.json but no weights" in said


@pytest.mark.parametrize("form", ["vision half", "whole CLIP", "several files", "bin"])
def test_teachers_of_all_forms_are_taken(world, tmp_path, form):
    torch.manual_seed(0)
    if form == "whole CLIP":
        CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION)).save_pretrained(tmp_path)
    else:
        model = CLIPVisionModel(CLIPVisionConfig(**VISION))
        model.save_pretrained(tmp_path, max_shard_size="10KB" if form == "several files" else "5GB")
        if form == "bin":
            (tmp_path / "model.safetensors").unlink()
            torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    module = micro.make_module(world, teacher=str(tmp_path))
    module.blueprint.check()
    module.configure_model()
    if form == "several files":
        next(tmp_path.glob("model-00002*")).unlink()
        with pytest.raises(CheckpointError, match="which is not there"):
            micro.make_module(world, teacher=str(tmp_path)).blueprint.check()


@pytest.mark.parametrize("kind", towers.CONFIGS)
def test_models_train_beside_teachers_of_all_families(world, tmp_path, kind):
    towers.make(kind).save_pretrained(tmp_path / "teacher")
    more = {"trainer.max_steps": 2, "model.teacher": tmp_path / "teacher", "data.validation": "null"}
    assert main(micro.arguments(world, tmp_path / "run", **more)) is None
    losses = micro.scalars(tmp_path / "run", "train/alignment_loss")
    assert list(losses) == [1, 2] and all(0.1 < loss < 1.9 for loss in losses.values())
    model, _ = lit_eve.load(tmp_path / "run", teacher=True)
    assert model.teacher.backbone.config.model_type == towers.CONFIGS[kind]["model_type"]


def test_a_teacher_sees_images_of_the_size_that_is_asked_for(world, tmp_path):
    """One with patches of 14 pixels whose own images are no multiple of the student's cells."""
    towers.make("dinov2", image_size=70, patch_size=14).save_pretrained(tmp_path / "teacher")
    said = refused(world, **{"model.teacher": tmp_path / "teacher"})
    assert "the teacher's grid of 5 x 5 patches does not lie on the student's" in said
    said = refused(world, **{"model.teacher": tmp_path / "teacher", "model.teacher_image_size": 60})
    assert "60 pixels has no whole patches of 14" in said
    said = refused(world, **{"model.teacher": tmp_path / "teacher", "model.teacher_image_size": 0})
    assert "model.teacher_image_size must be a number of pixels, got 0" in said
    more = {"trainer.max_steps": 1, "model.teacher": tmp_path / "teacher", "model.teacher_image_size": 112}
    main(micro.arguments(world, tmp_path / "run", **more))
    model, _ = lit_eve.load(tmp_path / "run", teacher=True)
    assert model.config.teacher_image_size == 112 and model.teacher.grid.side == 8


@pytest.mark.parametrize("key", ["model.decoder", "model.init_from"])
def test_damaged_weights_of_the_others_are_found_as_early(world, tmp_path, key):
    if key == "model.decoder":
        source, more = shutil.copytree(world / "decoder", tmp_path / "decoder"), {}
    else:
        module = micro.make_module(world)
        module.configure_model()
        source = tmp_path / "earlier"
        module.model.save_pretrained(source)
        module.processor.save_pretrained(source)
        more = {"stage": "2_pretrain"}
    weights = source / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert f"{key}: {weights} cannot be read, it may be truncated" in refused(world, **{key: source}, **more)
    assert "is a file" in refused(world, **{key: weights}, **more)
    weights.unlink()
    assert "no weights" in refused(world, **{key: source}, **more)
    config = json.loads((source / "config.json").read_text())
    (config if key == "model.decoder" else config["text_config"])["num_attention_heads"] = 5
    (source / "config.json").write_text(json.dumps(config))
    assert "not a multiple of the number of attention heads" in refused(world, **{key: source}, **more)


def test_weights_of_other_shapes_are_found_as_early(world, tmp_path):
    decoder = shutil.copytree(world / "decoder", tmp_path / "decoder")
    config = json.loads((decoder / "config.json").read_text())
    (decoder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    said = refused(world, **{"model.decoder": decoder})
    assert f"{decoder}: language_model.model.layers.0.mlp" in said and "has the shape" in said
    module = micro.make_module(world)
    module.configure_model()
    module.model.save_pretrained(tmp_path / "earlier")
    module.processor.save_pretrained(tmp_path / "earlier")
    other = {"stage": "2_pretrain", "model.init_from": tmp_path / "earlier"}
    said = refused(world, **other, **{"model.patch_embedding": "{name: eve_v1, width: 8, num_heads: 4}"})
    assert "patch_embedding" in said and "has the shape" in said
    said = refused(world, **other, **{"model.patch_embedding": "{name: linear, width: 16}"})
    assert "the model has no weight 'patch_embedding" in said
