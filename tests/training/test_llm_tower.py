"""Recipes whose encoder is made of a language model: named once, streamed into the model, saved with it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

import lit_eve
from lit_eve.errors import CheckpointError
from tests.training import world as micro

GEOMETRY = {"name": "square", "image_size": 64, "patch_size": 8, "pool_size": 2}


def module_of(world, **kwargs):
    spec = {"name": "llm_tower", "tower": str(world / "decoder"), "layers": 1}
    settings = {"patch_embedding": spec, "geometry": GEOMETRY, "aligner": None, "teacher": None}
    return micro.make_module(world, **settings | kwargs)


def test_a_recipe_names_the_language_model(world, tmp_path):
    module = module_of(world)
    module.blueprint.check()
    module.configure_model()
    weights = module.model.state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(world / "decoder").state_dict()
    same = [name for name in theirs if name.startswith(("model.layers.0.", "model.norm."))]
    assert same and all(torch.equal(weights[f"patch_embedding.tower.{name[6:]}"], theirs[name]) for name in same)
    own = {name for name in weights if name.startswith("patch_embedding.")} - {
        f"patch_embedding.tower.{name[6:]}" for name in same
    }
    assert own == {"patch_embedding.places", "patch_embedding.projection.weight", "patch_embedding.projection.bias"}
    assert all(value.isfinite().all() for value in weights.values()) and weights["patch_embedding.projection.weight"].any()
    module.model.save_pretrained(tmp_path / "model")
    module.processor.save_pretrained(tmp_path / "model")
    loaded, _ = lit_eve.load(tmp_path / "model")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())
    later = module_of(world, init_from=str(tmp_path / "model"), decoder=None, patch_embedding=None, geometry=None)
    later.configure_model()
    assert all(torch.equal(later.model.state_dict()[name], value) for name, value in weights.items())


@pytest.mark.parametrize(("name", "message"), [("teacher", "of the type 'clip_vision_model'"), ("nowhere", "nowhere")])
def test_what_is_no_language_model_is_named(world, name, message):
    spec = {"name": "llm_tower", "tower": str(world / name)}
    with pytest.raises(CheckpointError, match=rf"^model\.patch_embedding\.tower: .*{message}"):
        module_of(world, patch_embedding=spec).blueprint.check()
