"""Geometry: equal to the official code on 120 sizes at 672 and 1344, and clear about sizes that cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_eve.errors import ConfigError
from lit_eve.processing import ImageGeometry

REFERENCE = Path(__file__).parents[1] / "data" / "eve_v1"
NANO = ImageGeometry(image_size=64, patch_size=4, pool_size=2, teacher_image_size=64, teacher_patch_size=8)
CASES = json.loads((REFERENCE / "geometry.json").read_text())


@pytest.mark.parametrize("size", [672, 1344])
def test_official_sizes(size):
    geometry = ImageGeometry(image_size=size)
    assert len(CASES[str(size)]) == (100 if size == 672 else 20)
    for case in CASES[str(size)]:
        width, height = case["wh"]
        assert list(geometry.patch_grid(width, height)) == case["patches_hw"]
        assert list(geometry.token_grid(width, height)) == case["tokens_hw"]
        assert geometry.num_tokens(width, height) == case["n_tokens"]
        (top, bottom), (left, right) = case["valid_y"], case["valid_x"]
        assert geometry.resized(width, height) == (right - left, bottom - top)
        rows, cols = geometry.teacher_offset(width, height)
        assert (rows * geometry.cell_size, cols * geometry.cell_size) == (top, left)


@pytest.mark.parametrize("geometry", [ImageGeometry(), ImageGeometry(image_size=1344), NANO], ids=["672", "1344", "nano"])
def test_many_images_at_once_equal_one_by_one(geometry):
    sizes = [case["wh"] for case in CASES["672"]]
    grids = np.array([geometry.patch_grid(*size) for size in sizes])
    for grid in (grids, torch.from_numpy(grids)):
        assert geometry.token_grid_of(grid).tolist() == [list(geometry.token_grid(*size)) for size in sizes]
        assert geometry.num_tokens_of_grid(grid).tolist() == [geometry.num_tokens(*size) for size in sizes]
        assert geometry.teacher_grid_of(grid).tolist() == [list(geometry.teacher_grid(*size)) for size in sizes]
        assert geometry.teacher_offset_of(grid).tolist() == [list(geometry.teacher_offset(*size)) for size in sizes]


def test_nano():
    assert NANO.patch_grid(64, 64) == (16, 16)
    assert NANO.token_grid(64, 64) == (8, 8)
    assert NANO.num_tokens(64, 64) == NANO.max_tokens == 8 * 9 + 1
    assert NANO.resized(100, 30) == (64, 24)
    assert NANO.teacher_offset(100, 30) == (2, 0)
    assert NANO.num_tokens(100, 30) == 3 * 9 + 1


def test_class_and_split_tokens_can_be_left_out():
    assert ImageGeometry(class_token=False).num_tokens(1, 1) == 24 * 25
    assert ImageGeometry(split_token=False).num_tokens(1, 1) == 24 * 24 + 1


def test_facts_agree_on_every_shape():
    for geometry in (ImageGeometry(), ImageGeometry(image_size=1344), NANO):
        for width, height in np.random.default_rng(0).integers(1, 4000, (500, 2)).tolist():
            rows, cols = geometry.patch_grid(width, height)
            assert geometry.resized(width, height) == (cols * geometry.patch_size, rows * geometry.patch_size)
            assert geometry.token_grid(width, height) == (rows // geometry.pool_size, cols // geometry.pool_size)
            assert max(geometry.resized(width, height)) == geometry.image_size
            assert geometry.num_tokens(width, height) <= geometry.max_tokens


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"image_size": 700}, "geometry.image_size = 700 must be a multiple of geometry.teacher_image_size = 336"),
        ({"image_size": 224}, "geometry.image_size = 224 must be a multiple"),
        (
            {"teacher_patch_size": 16, "teacher_image_size": 328, "image_size": 656},
            "multiple of geometry.teacher_patch",
        ),
        ({"image_size": 336}, "teacher's grid does not divide the token grid"),
        ({"pool_size": 3}, "teacher's grid does not divide the token grid"),
        ({"patch_size": 0}, "geometry.patch_size must be a positive integer, got 0"),
        ({"pool_size": 2.0}, "geometry.pool_size must be a positive integer, got 2.0"),
        ({"patchsize": 14}, "geometry has no key 'patchsize'"),
    ],
)
def test_sizes_that_cannot_work(sizes, words):
    with pytest.raises(ConfigError, match=words):
        ImageGeometry.from_dict(sizes)


def test_saved_and_loaded():
    assert ImageGeometry.from_dict(json.loads(json.dumps(NANO.to_dict()))) == NANO
