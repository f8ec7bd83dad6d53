"""A vision encoder in front of the decoder: its features are the plain model's, frozen or trained."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig

from lit_eve.errors import ConfigError
from lit_eve.models import EveConfig, EveForConditionalGeneration
from lit_eve.testing import check_patch_embedding
from lit_eve.vision_towers import fields_of
from tests import towers
from tests.models import tiny

SQUARE = {"name": "square", "image_size": 64, "patch_size": 8}
KINDS = list(towers.CONFIGS)


def spec_of(kind: str, **arguments) -> dict:
    return {"name": "vision_tower", "tower": fields_of(AutoConfig.for_model(**towers.CONFIGS[kind])), **arguments}


def model_of(kind: str = "clip", geometry: dict = SQUARE, **arguments) -> EveForConditionalGeneration:
    torch.manual_seed(0)
    config = EveConfig(text_config=tiny.DECODERS["llama"], geometry=geometry, patch_embedding=spec_of(kind, **arguments))
    model = EveForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.05, std=0.15)
    return model


def patches_of(pixels: torch.Tensor, pool: int = 1) -> torch.Tensor:
    """(N, 3, 64, 64) -> (N * 64, 3 * 64), those of a window side by side."""
    p = 8
    windows = pixels.unfold(2, p * pool, p * pool).unfold(3, p * pool, p * pool)  # (N, 3, h, w, y, x)
    inner = windows.unfold(4, p, p).unfold(5, p, p)  # (N, 3, h, w, i, j, y, x)
    return inner.permute(0, 2, 3, 4, 5, 1, 6, 7).reshape(-1, 3 * p * p)


@pytest.mark.parametrize(
    ("kind", "geometry", "layer"),
    [
        *((kind, SQUARE, -2) for kind in KINDS),
        ("clip", SQUARE | {"pool_size": 2}, -1),
        ("siglip", {**SQUARE, "name": "tiles", "pool_size": 1}, 1),
    ],
)
def test_the_contract(kind, geometry, layer):
    check_patch_embedding(spec_of(kind, layer=layer), geometry)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layer", "pool", "size"), [(-2, 1, 64), (-1, 2, 96)])
def test_features_are_the_hidden_states_of_transformers(kind, layer, pool, size):
    plain = towers.make(kind)
    geometry = {**SQUARE, "pool_size": pool, "image_size": size}
    embedding = model_of(kind, geometry, layer=layer).patch_embedding.eval()
    kept = {name: value for name, value in plain.state_dict().items() if name in embedding.tower.state_dict()}
    embedding.tower.load_state_dict(kept)
    pixels = torch.randn(2, 3, size, size)
    stretch = {"interpolate_pos_encoding": True} if kind in towers.WHOLE else {}
    with torch.no_grad():
        states = plain(pixels, output_hidden_states=True, **stretch).hidden_states[layer]
        side = size // 8
        grid = states[:, -side * side :].unflatten(1, (side // pool, pool, side // pool, pool)).transpose(2, 3)
        image_of_token = torch.arange(2).repeat_interleave(side**2 // pool**2)
        found = embedding(patches_of(pixels, pool), image_of_token, 2).tokens
    torch.testing.assert_close(found, grid.reshape(-1, pool * pool * 16), rtol=0, atol=1e-5)


def test_a_frozen_tower_holds_nothing_for_a_backward_pass():
    model = model_of("dinov3").train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith("patch_embedding.tower."))
    patches = patches_of(torch.randn(2, 3, 64, 64))
    image = torch.arange(2).repeat_interleave(64)
    first = model.patch_embedding(patches, image, 2).tokens
    assert not first.requires_grad and not model.patch_embedding.tower.training
    assert torch.equal(first, model.patch_embedding(patches, image, 2).tokens)  # in training mode its positions are random
    model.requires_grad_(True)
    trained = model.patch_embedding(patches, image, 2).tokens
    assert trained.requires_grad and model.patch_embedding.tower.training
    model.eval()
    assert not model.patch_embedding(patches, image, 2).tokens.equal(trained)
    assert not model.patch_embedding.tower.training


@pytest.mark.parametrize("kind", KINDS)
def test_saved_reloaded_and_without_images(kind, tmp_path):
    """config.json holds the tower's config; a batch without images gives every weight a gradient of zero."""
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    loaded = EveForConditionalGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.state_dict().keys() == model.state_dict().keys()
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in loaded.named_buffers())
    ids = torch.randint(3, 50, (1, 9))
    nothing = {"pixel_values": torch.zeros(0, 192, dtype=torch.uint8), "image_grid_hw": torch.zeros(0, 2, dtype=torch.long)}
    loss = loaded.train()(input_ids=ids, labels=ids, **nothing).loss
    loss.backward()
    torch.testing.assert_close(loss, loaded(input_ids=ids, labels=ids).loss)
    assert all(p.grad is not None and not p.grad.any() for p in loaded.patch_embedding.parameters())


@pytest.mark.parametrize(
    ("arguments", "geometry", "message"),
    [
        ({"tower": "openai/clip"}, SQUARE, "tower = 'openai/clip' is a name"),
        ({"tower": {"model_type": "vit"}}, SQUARE, "there is no vision encoder of the type 'vit'; known: clip_vision_model"),
        ({"layer": 4}, SQUARE, "layer = 4 does not exist: the CLIP has 3 layers"),
        ({"layer": 0}, SQUARE, "layer must be behind at least one layer"),
        ({}, tiny.GEOMETRY, "sees squares of one size .*, not geometry 'eve_v1'"),
        ({}, SQUARE | {"patch_size": 16}, "the encoder has patches of 8 pixels, but geometry.patch_size is 16"),
    ],
)
def test_what_is_refused(arguments, geometry, message):
    with pytest.raises(ConfigError, match=message):
        model_of("clip", geometry, **arguments)
