"""Geometries: equal to the official code of EVE v1 and v2, and clear about sizes that cannot work."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from lit_eve.errors import ConfigError
from lit_eve.processing import GEOMETRIES, EveV1Geometry, EveV2Geometry, ImageGeometry, TeacherGrid, load_image
from lit_eve.processing.geometries import (
    LongestSideGeometry,
    NativeGeometry,
    PaddedGeometry,
    SquareGeometry,
    TilesGeometry,
    TokenBudgetGeometry,
)

DATA = Path(__file__).parents[1] / "data"
NANO = EveV1Geometry(image_size=64, patch_size=4, pool_size=2, cells=8)
CLIP_L = TeacherGrid(336, 14)
V1 = json.loads((DATA / "eve_v1/geometry.json").read_text())
V2 = json.loads((DATA / "eve_v2/tiny/geometry.json").read_text())["rows"]
NEO = json.loads((DATA / "neo/geometry.json").read_text())
MONO = json.loads((DATA / "mono_internvl/geometry.json").read_text())["sizes"]
SMALL = {
    "eve_v1": NANO,
    "eve_v1 hd": EveV1Geometry(image_size=128, patch_size=4, pool_size=2, cells=8),
    "eve_v2": EveV2Geometry(patch_size=4, pool_size=2, max_size=64),
    "eve_v2 inference": EveV2Geometry(patch_size=4, pool_size=2, max_size=64, rule="inference"),
    "longest_side": LongestSideGeometry(patch_size=8, max_side=64),
    "native": NativeGeometry(patch_size=4, pool_size=2, min_pixels=256, max_pixels=4096),
    "native shared": NativeGeometry(patch_size=4, pool_size=2, min_pixels=256, max_pixels=4096, shared=True),
    "padded": PaddedGeometry(patch_size=8, max_width=128, max_height=64),
    "padded windows": PaddedGeometry(patch_size=4, pool_size=2, class_token=True, max_width=64, max_height=64),
    "square": SquareGeometry(patch_size=8, image_size=64),
    "square crop": SquareGeometry(patch_size=8, image_size=64, fit="crop", class_token=True),
    "square stretch": SquareGeometry(patch_size=4, pool_size=2, image_size=64, fit="stretch"),
    "tiles": TilesGeometry(patch_size=4, pool_size=2, image_size=16),
    "tiles alone": TilesGeometry(patch_size=4, pool_size=2, image_size=16, max_tiles=4, thumbnail=False),
    "token_budget": TokenBudgetGeometry(patch_size=8, tokens=20),
}
"""Every registered geometry at a small size."""


@pytest.mark.parametrize("size", [672, 1344])
def test_official_sizes_of_eve_v1(size):
    geometry = EveV1Geometry(image_size=size)
    assert len(V1[str(size)]) == (100 if size == 672 else 20)
    for case in V1[str(size)]:
        width, height = case["wh"]
        assert geometry.patch_grids(width, height) == [tuple(case["patches_hw"])]
        assert geometry.token_grids(width, height) == [tuple(case["tokens_hw"])]
        assert geometry.num_tokens(width, height) == case["n_tokens"]
        (top, bottom), (left, right) = case["valid_y"], case["valid_x"]
        assert geometry.resized(width, height) == (right - left, bottom - top)
        rows, cols = CLIP_L.offset_of(np.array(case["patches_hw"]), geometry)
        assert (rows * geometry.cell_size, cols * geometry.cell_size) == (top, left)


@pytest.mark.parametrize("rule", ["train", "inference"])
@pytest.mark.parametrize("size", [800, 1600])
def test_official_sizes_of_eve_v2(size, rule):
    geometry, key = EveV2Geometry(max_size=size, rule=rule), rule.removesuffix("ence")
    assert len(V2) == 76
    for case in V2:
        width, height = case["width"], case["height"]
        assert list(geometry.resized(width, height)) == case[str(size)][f"{key}_wh"]
        assert geometry.num_tokens(width, height) == case[str(size)][f"{key}_tokens"]


@pytest.mark.parametrize("name", NEO["budgets_min_max_pixels"])
def test_official_sizes_of_neo(name):
    low, high = NEO["budgets_min_max_pixels"][name]
    geometry = NativeGeometry(min_pixels=low, max_pixels=high)
    assert len(NEO["sizes"]) == 45
    for case in NEO["sizes"]:
        if isinstance(case[name], str):
            continue  # an aspect ratio above 200, which is refused where photos are read
        assert list(geometry.resized(*case["source_wh"])) == case[name]["resized_wh"]
        assert geometry.patch_grids(*case["source_wh"]) == [tuple(case[name]["patch_grid_hw"])]
        assert geometry.num_tokens(*case["source_wh"]) == case[name]["tokens"]


def test_photos_of_a_sample_share_neos_bound():
    geometry = NativeGeometry(min_pixels=65_536, max_pixels=4_194_304, shared=True)
    for case in NEO["several_images_in_a_sample"]:
        assert geometry.token_grids(*case["source_wh"], case["num_images"]) == [tuple(case["token_grid_hw"])]


def test_sizes_of_qwen2_vl():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    geometry = NativeGeometry(patch_size=14, min_pixels=3136, max_pixels=1_003_520)
    for width, height in np.random.default_rng(0).integers(15, 3000, (500, 2)).tolist():
        if max(width, height) < 200 * min(width, height):
            expected = smart_resize(height, width, 28, 3136, 1_003_520)
            assert geometry.resized(width, height) == expected[::-1]


@pytest.mark.parametrize("tokens", [70, 140, 280, 560, 1120])
def test_sizes_of_gemma_4(tokens):
    from transformers.models.gemma4.image_processing_pil_gemma4 import get_aspect_ratio_preserving_size

    for geometry in (TokenBudgetGeometry(tokens=tokens), TokenBudgetGeometry(patch_size=16, pool_size=3, tokens=tokens)):
        for width, height in np.random.default_rng(0).integers(1, 3000, (500, 2)).tolist():
            expected = get_aspect_ratio_preserving_size(height, width, 16, 9 * tokens, 3)
            assert geometry.resized(width, height) == expected[::-1]


def test_sizes_of_fuyu(monkeypatch):
    from transformers.models.fuyu import image_processing_pil_fuyu as fuyu

    monkeypatch.setattr(fuyu.PilBackend, "resize", lambda self, image, size, **_: np.empty((3, size.height, size.width)))
    processor, geometry = fuyu.FuyuImageProcessorPil(), PaddedGeometry()
    for width, height in [(1920, 1080), (1921, 1080), (30, 30), *np.random.default_rng(0).integers(1, 4000, (500, 2)).tolist()]:
        if max(width, height) < 200 * min(width, height):
            fitted = processor.resize(np.broadcast_to(0, (3, height, width)), processor.size).shape[:0:-1]
            expected = [math.ceil(side / 30) * 30 for side in fitted]  # as in FuyuProcessor._process_images
            assert list(geometry.resized(width, height)) == expected
            assert geometry.shows_whole(Image.new("RGB", (width, height))) is (list(fitted) == expected)


@pytest.mark.parametrize("size", [(40, 20), (21, 30), (96, 54), (97, 20), (300, 200), (50, 290), (20, 55)])
def test_pixels_of_fuyu(size):
    from transformers.models.fuyu.image_processing_pil_fuyu import FuyuImageProcessorPil

    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    largest = {"height": 54, "width": 96}
    theirs = FuyuImageProcessorPil(size=largest, patch_size={"height": 6, "width": 6}, do_normalize=False, do_rescale=False)
    geometry = PaddedGeometry(patch_size=6, max_width=96, max_height=54)
    (view,) = geometry.views(photo)
    expected = np.asarray(theirs(photo, return_tensors="np")["images"][0]).squeeze(0)[:, : view.height, : view.width]
    assert np.array_equal(np.asarray(view), expected.transpose(1, 2, 0))
    frame = geometry.frame(photo)
    assert geometry.shows_whole(frame) and geometry.views(frame)[0].tobytes() == view.tobytes()


@pytest.mark.parametrize("most", [4, 6, 12])
def test_official_tiles_of_mono_internvl(most):
    geometry = TilesGeometry(max_tiles=most)
    assert len(MONO) == 44
    for case in MONO:
        width, height = case["source_wh"]
        assert list(geometry.tile_grid(width, height)[::-1]) == case[f"max{most}"]["columns_rows"], (width, height)
        assert len(geometry.view_sizes(width, height)) == case[f"max{most}"]["tiles_with_thumbnail"]
        assert geometry.num_tokens(width, height) == case[f"max{most}"]["tokens_at_256_per_tile"]


@pytest.mark.parametrize("image", ["square", "wide", "tall"])
def test_official_pixels_of_mono_internvl(image, monkeypatch):
    # They were made by Pillow 12, which resamples rows first. Pillow 13 may take the columns first where one side grows and the
    # other shrinks: it rounds between the two, and a fifth of the pixels differ by a few levels.
    resize = Image.Image.resize
    rows_first = lambda photo, size, how: resize(resize(photo, (size[0], photo.height), how), size, how)  # noqa: E731
    monkeypatch.setattr(Image.Image, "resize", rows_first)
    photo, pixels = load_image(DATA / f"mono_internvl/images/{image}.png"), load_file(DATA / "mono_internvl/pixels.safetensors")
    for most, images, name in ((4, 1, "tiles_u8"), (4, 2, "tiles_max2_u8")):
        views = TilesGeometry(image_size=56, max_tiles=most).views(photo, images)
        assert np.array_equal(np.stack([np.asarray(view) for view in views]), pixels[f"{image}.{name}"])


@pytest.mark.parametrize("image", ["small", "wide", "tall", "big"])
def test_official_pixels_of_neo(image):
    photo, pixels = load_image(DATA / f"neo/tiny/images/{image}.png"), load_file(DATA / "neo/tiny/pixels.safetensors")
    (view,) = NativeGeometry(min_pixels=4096, max_pixels=16384).views(photo)
    assert np.array_equal(np.asarray(view), pixels[f"{image}.u8"])


def test_what_a_square_holds_of_a_photo():
    photo = Image.new("RGB", (90, 30), (255, 0, 0))
    size = {"patch_size": 10, "image_size": 30}
    padded, cropped, stretched = (np.asarray(SquareGeometry(fit=fit, **size).views(photo)[0]) for fit in SquareGeometry.FITS)
    assert padded.shape == cropped.shape == stretched.shape == (30, 30, 3)
    assert (padded[0, 0] == (122, 116, 104)).all() and (padded[15] == (255, 0, 0)).all()
    assert (cropped == (255, 0, 0)).all() and (stretched == (255, 0, 0)).all()
    # LLaVA's expand2square, written out: the photo in the middle, rounded towards the left and the top
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 55, 3), np.uint8))
    square = Image.new("RGB", (55, 55), (122, 116, 104))
    square.paste(photo, (0, 12))
    expected = square.resize((30, 30), Image.Resampling.BICUBIC)
    assert SquareGeometry(**size).views(photo)[0].tobytes() == expected.tobytes()


def test_nano():
    assert NANO.patch_grids(64, 64) == [(16, 16)]
    assert NANO.token_grids(64, 64) == [(8, 8)]
    assert NANO.num_tokens(64, 64) == 8 * 9 + 1
    assert NANO.resized(100, 30) == (64, 24)
    assert NANO.num_tokens(100, 30) == 3 * 9 + 1


@pytest.mark.parametrize("geometry", SMALL.values(), ids=SMALL)
def test_class_and_split_tokens_can_be_left_out(geometry):
    plain = replace(geometry, class_token=False, split_token=False)
    grids = geometry.token_grids(60, 40)
    assert plain.num_tokens(60, 40) == sum(rows * cols for rows, cols in grids)
    assert replace(plain, class_token=True).num_tokens(60, 40) == sum(rows * cols + 1 for rows, cols in grids)
    assert replace(plain, split_token=True).num_tokens(60, 40) == sum(rows * (cols + 1) for rows, cols in grids)


def test_every_geometry_is_tried_here():
    assert {geometry.to_dict()["name"] for geometry in SMALL.values()} == set(GEOMETRIES)


@pytest.mark.parametrize(
    ("photo", "image"),
    [
        ((540, 32), (544, 32)),
        ((1000, 333), (1024, 352)),  # 1024 * 333 / 1000 = 340.99, cut to 340
        ((333, 1000), (352, 1024)),
        ((4000, 3000), (1024, 768)),
        ((1025, 1025), (1024, 1024)),
        ((64, 64), (64, 64)),
        ((100, 1), (128, 32)),
        ((3000, 1), (1024, 32)),  # there, an image without an area
    ],
)
def test_sizes_of_solo(photo, image):
    """The rule of its ``image_utils.py``, by hand."""
    assert LongestSideGeometry().resized(*photo) == image


@pytest.mark.parametrize("geometry", SMALL.values(), ids=SMALL)
def test_facts_agree_on_every_shape(geometry):
    for images in (1, 3):
        for width, height in np.random.default_rng(0).integers(1, 4000, (300, 2)).tolist():
            sizes = geometry.view_sizes(width, height, images)
            grids = geometry.patch_grids(width, height, images)
            assert sizes == [(cols * geometry.patch_size, rows * geometry.patch_size) for rows, cols in grids]
            found = np.array(grids)
            for grid in (found, torch.from_numpy(found)):
                tokens = [tuple(row) for row in geometry.token_grid_of(grid).tolist()]
                assert tokens == geometry.token_grids(width, height, images)
                assert int(geometry.num_tokens_of_grid(grid).sum()) == geometry.num_tokens(width, height, images)
            for rows, cols in tokens:
                assert not rows % geometry.side_step and not cols % geometry.side_step
                assert geometry.longest_side in (None, max(rows, cols))


@pytest.mark.parametrize("geometry", SMALL.values(), ids=SMALL)
def test_views_have_the_sizes_that_were_counted(geometry):
    for size in ((100, 30), (30, 100), (64, 64), (7, 5), (300, 2)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
        kept = geometry.settled(image)
        for images in (1, 3):
            views = geometry.views(image, images)
            assert [view.size for view in views] == geometry.view_sizes(*size, images)
            assert [view.tobytes() for view in geometry.views(kept, images)] == [view.tobytes() for view in views]


@pytest.mark.parametrize("fit", SquareGeometry.FITS)
@pytest.mark.parametrize("geometry", SMALL.values(), ids=SMALL)
def test_a_photo_is_shown_whole_where_its_only_view_is_the_photo_resized(geometry, fit):
    geometry = replace(geometry, fit=fit) if isinstance(geometry, SquareGeometry) else geometry
    for size in ((100, 30), (30, 100), (64, 64), (7, 5), (300, 2)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
        for images in (1, 3):
            views = geometry.views(image, images)
            resized = image.resize(views[0].size, Image.Resampling.BICUBIC)
            whole = len(views) == 1 and views[0].tobytes() == resized.tobytes()
            assert geometry.shows_whole(image, images) is whole


def test_what_is_kept_of_a_photo_is_small():
    assert NANO.settled(Image.new("RGB", (4000, 3000))).size == (64, 48)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"image_size": 700}, "geometry.image_size = 700 must be a multiple of geometry.cells = 24"),
        (
            {"image_size": 336},
            "a cell has image_size / cells = 14 pixels, no multiple of the patch_size . pool_size = 28 pixels",
        ),
        ({"pool_size": 3}, "a cell has"),
        ({"patch_size": 0}, "geometry.patch_size must be a positive integer, got 0"),
        ({"pool_size": 2.0}, "geometry.pool_size must be a positive integer, got 2.0"),
        ({"patchsize": 14}, "geometry 'eve_v1' has no key 'patchsize'; it takes: patch_size, pool_size, class_token"),
        ({"name": "eve_v3"}, "unknown geometry 'eve_v3'; known: eve_v1, eve_v2, longest_side, native"),
        ({"name": "native", "min_pixels": 9_000_000}, "min_pixels = 9000000 is more than geometry.max_pixels = 4194304"),
        ({"name": "native", "max_pixels": 500}, "max_pixels = 500 is less than a token of 32.2 pixels"),
        ({"name": "square", "fit": "fill"}, "geometry.fit must be one of pad, crop, stretch, got 'fill'"),
        ({"name": "square", "image_size": 337}, "image_size = 337 must be a multiple of the patch_size . pool_size = 14"),
        ({"name": "square", "background": [300, 0, 0]}, "background must be three integers of 0 to 255, got .300, 0, 0."),
        ({"name": "padded", "max_width": 1921}, "max_width = 1921 must be a multiple of the patch_size . pool_size = 30"),
        ({"name": "padded", "max_height": 31}, "geometry.max_height = 31 must be a multiple"),
        ({"name": "padded", "background": [1, 1]}, "background must be three integers of 0 to 255, got .1, 1."),
        (
            {"name": "longest_side", "max_side": 1000},
            "geometry.max_side = 1000 must be a multiple of the patch_size . pool_size = 32",
        ),
        ({"name": "tiles", "image_size": 450}, "image_size = 450 must be a multiple of the patch_size . pool_size = 28"),
        ({"name": "token_budget", "tokens": 0}, "geometry.tokens must be a positive integer, got 0"),
        ({"name": "eve_v2", "image_size": 672}, "geometry 'eve_v2' has no key 'image_size'"),
        ({"name": "eve_v2", "max_size": 20}, "geometry.max_size = 20 is less than the patch_size . pool_size = 32"),
        ({"name": "eve_v2", "rule": "test"}, "geometry.rule must be one of train, inference, got 'test'"),
        ({"teacher_image_size": 328, "teacher_patch_size": 16}, "teacher_image_size = 328 must be a multiple of"),
    ],
)
def test_sizes_that_cannot_work(sizes, words):
    with pytest.raises(ConfigError, match=words):
        ImageGeometry.from_dict(sizes)


def test_a_photo_without_an_area_is_refused():
    for geometry in SMALL.values():
        with pytest.raises(ConfigError, match="an image of 0 x 5 pixels"):
            geometry.resized(0, 5)


@pytest.mark.parametrize("geometry", SMALL.values(), ids=SMALL)
def test_saved_and_loaded(geometry):
    assert ImageGeometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


def test_what_was_written_before_there_were_several_geometries():
    nano = {"image_size": 64, "patch_size": 4, "pool_size": 2, "teacher_image_size": 64, "teacher_patch_size": 8}
    assert ImageGeometry.from_dict(nano) == NANO
    assert ImageGeometry.from_dict({}) == EveV1Geometry() == EveV1Geometry(image_size=672, cells=24)
    assert ImageGeometry.from_dict({"image_size": 1344}) == EveV1Geometry(image_size=1344)


# ---- a teacher beside the student


def test_a_teacher_on_the_students_grid():
    assert CLIP_L.tokens_per_patch(EveV1Geometry()) == 1
    assert CLIP_L.tokens_per_patch(EveV1Geometry(image_size=1344)) == 2
    assert CLIP_L.tokens_per_patch(EveV1Geometry(cells=12)) == 1  # a cell is 2 x 2 of its patches
    small = TeacherGrid(64, 8)
    for width, height in np.random.default_rng(0).integers(1, 500, (100, 2)).tolist():
        for geometry in (NANO, SMALL["eve_v1 hd"]):
            grid = np.array(geometry.patch_grids(width, height)[0])
            assert tuple(small.grid_of(grid, geometry)) == geometry.cell_grid(width, height)
            assert (small.offset_of(grid, geometry) == (8 - small.grid_of(grid, geometry)) // 2).all()


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (EveV2Geometry(), "with the geometry 'eve_v2', the longest sides of images are not all the same"),
        (TilesGeometry(patch_size=7, image_size=336), "with the geometry 'tiles', a photo has several views"),
        (EveV1Geometry(image_size=644, cells=23), "the longest side of an image has 23 tokens, no multiple of 24"),
        (EveV1Geometry(image_size=1344, cells=48), "cover 2 x 2 tokens, but the sides of an image are multiples of 1 tokens"),
    ],
)
def test_a_teacher_whose_grid_does_not_lie_on_the_students(geometry, words):
    with pytest.raises(ConfigError, match=words):
        CLIP_L.tokens_per_patch(geometry)


def test_a_teacher_of_odd_patches_is_refused():
    with pytest.raises(ConfigError, match="images have 330 pixels has no whole patches of 16"):
        TeacherGrid(330, 16)
